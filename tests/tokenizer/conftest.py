"""A small routed tokenizer trained on a few sentences in five scripts, once for all tests."""

from pathlib import Path

import pytest

from moxin_lab.tokenizer import files, routed

ENGLISH = [
    "The routed tokenizer cuts a text into runs of one script and lets the expert of each run "
    "merge its characters.\n",
    "A token belongs to one expert, and the ids of an expert lie side by side, so a block is a "
    "slice of the embedding.\n",
    "def encode(text):\n    return [token for run in route(text) for token in merge(run)]"
    "  # every run, in order\n",
    "\tif window:\n\t\tx = 1  \n\n\n    \ty = 2 \t\n  \n\t\t\t# window   \t  \n\n" * 4,
    "Reading a page of help, the tokenizer sees the words window, document, file, table, and the "
    "menu of the window.\n",
]
CHINESE = [
    "分词器把文本切成单一文字的段落，每一段由自己的专家合并字符。\n",
    "文档窗口中的表格和文件，在文档窗口的菜单里打开文件。\n",
]
JAPANESE = [
    "このトークナイザーは文章を文字の種類で分けます。\n",
    "ファイルのメニューでドキュメントのウィンドウを開きます。文字のファイルです。\n",
]
KOREAN = [
    "토크나이저는 글을 문자 종류로 나누고 전문가가 글자를 합칩니다.\n",
    "문서 창의 메뉴에서 파일을 열고 문서 창의 표를 봅니다.\n",
]
RUSSIAN = ["Токенизатор делит текст на отрезки одной письменности, и эксперт соединяет буквы.\n"]
TEXTS = {
    "en": ENGLISH * 3,
    "zh": CHINESE * 3,
    "ja": JAPANESE * 3,
    "ko": KOREAN * 3,
    "ru": RUSSIAN * 3,
}
VOCAB_SIZE = 800


@pytest.fixture(scope="session")
def texts() -> dict[str, list[str]]:
    return TEXTS


@pytest.fixture(scope="session")
def small() -> routed.RoutedTokenizer:
    return routed.train(TEXTS, VOCAB_SIZE, min_tokens_per_expert=20)


@pytest.fixture(scope="session")
def folder(small: routed.RoutedTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    files.save(small, path)
    return path
