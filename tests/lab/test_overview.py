"""Guarantees of notebook 00: it shows a picture of every stage before anything has run, and each
reader's own pictures after it.
"""

import base64
import json
import re
from xml.etree import ElementTree

import pytest

from moxin_lab.lab import overview, pictures
from moxin_lab.lab.artifacts import LabError
from moxin_lab.stages import STAGES


@pytest.fixture
def shown(monkeypatch):
    """What the functions display, in order."""
    outputs = []
    monkeypatch.setattr("moxin_lab.lab.show._display", lambda html, *_: outputs.append(html))
    monkeypatch.setattr("moxin_lab.lab.show.say", outputs.append)
    return outputs


def test_the_figure_of_each_guide_is_one_of_its_notebook(repository):
    """The words of its caption stand in the notebook, or in a function that it calls."""
    own = repository / "moxin_lab/lab/overview.py"
    files = [path for path in sorted((repository / "moxin_lab").glob("*/*.py")) if path != own]
    package = "".join(path.read_text(encoding="utf-8") for path in files)
    for guide in overview.GUIDES:
        notebook = (repository / f"notebooks/{guide.stage}.ipynb").read_text(encoding="utf-8")
        assert guide.figure[0] in package + notebook, guide.stage


def test_every_stage_has_a_guide():
    assert [guide.stage for guide in overview.GUIDES] == [info.name for info in STAGES]


def test_before_any_run_the_released_pictures_are_shown_and_said_to_be_so(shown, repository):
    count = overview.show_best_figures("no-such-run", repository)
    # The openness page is not among the released, and the released run is older than stage 09.
    assert count == len(shown) >= len(STAGES) - 2
    for html in shown:
        assert "(released run)" in html and "<svg" not in html
        content = re.search(r"base64,([^\"]+)", html)[1]
        root = ElementTree.fromstring(base64.b64decode(content))
        assert root.tag.endswith("}svg") and root.get("viewBox")
        assert re.search(r'alt="[^"]{20,}', html)


def test_a_run_of_ones_own_takes_the_place_of_the_released_picture(shown, tmp_path):
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "moxin-lab"\n')
    folder = tmp_path / "runs" / "tiny" / "03_model"
    folder.mkdir(parents=True)
    svg = '<svg width="72pt" height="36pt" viewBox="0 0 72 36"><g/></svg>'
    figure = (
        f'<figure class="moxin-figure"><div>{pictures.image(svg, "mine")}</div>'
        "<figcaption>Bytes of keys and values, mine.</figcaption></figure>"
    )
    cells = [{"outputs": [{"data": {"text/html": [figure]}}]}]
    (folder / "notebook.ipynb").write_text(json.dumps({"cells": cells}))
    guide = next(guide for guide in overview.GUIDES if guide.stage == "03_model")
    assert "mine." in overview._best(tmp_path, "tiny", guide)


def test_inline_pictures_become_images_and_inline_again():
    page = (
        '<svg aria-labelledby="a" height="48" viewbox="0 0 72 36" width="96"><desc id="a">Two '
        'lines.</desc><defs><clippath id="c"><path d="M 0 0"></path></clippath></defs>'
        '<g clip-path="url(#c)"></g></svg>'
    )
    image = pictures.image_of_inline(page)
    assert 'alt="Two lines."' in image and 'width="96"' in image and 'height="48"' in image
    again = pictures.inlined(image)
    assert "clipPath" in again and "url(#picture-1-c)" in again and 'viewBox="0 0 72 36"' in again


def test_the_map_names_every_notebook_and_what_it_needs(shown, repository):
    overview.show_map()
    overview.show_needs("no-such-run", repository)
    assert all(info.name in shown[0] and info.name in shown[1] for info in STAGES)
    assert shown[1].count("not run yet") == len(STAGES)
    needs = {info.name[:2]: overview.needs_in_words(info) for info in STAGES}
    assert needs["01"] == "nothing" and needs["04"] == "01, 02, 03"
    assert needs["07"] == "02 (04, 05, 06)" and needs["10"].startswith("the records")


def test_every_notebook_states_how_long_it_takes(repository, tmp_path):
    for info in STAGES:
        stated = overview.stated_time(repository / "notebooks" / f"{info.name}.ipynb")
        assert re.fullmatch(r"[a-z0-9 ]+ (seconds|minutes)", stated), (info.name, stated)
    (tmp_path / "x.ipynb").write_text('{"cells": [{"cell_type": "markdown", "source": ["No."]}]}')
    with pytest.raises(LabError, match="does not say how long"):
        overview.stated_time(tmp_path / "x.ipynb")


def test_the_seconds_of_a_run_are_marked_as_the_clock_s(monkeypatch, repository):
    marks = []
    monkeypatch.setattr("moxin_lab.lab.show._display", lambda *shown: marks.append(shown[2]))
    overview.show_needs("no-such-run", repository)
    assert marks == [True]


def test_notebook_00_runs_from_where_jupyterlab_opens_it(repository, tmp_path):
    import papermill

    papermill.execute_notebook(
        str(repository / "notebooks" / "00_start_here.ipynb"),
        str(tmp_path / "out.ipynb"),
        parameters={"scale": "tiny"},
        cwd=str(repository / "notebooks"),
        progress_bar=False,
    )
    text = (tmp_path / "out.ipynb").read_text()
    assert text.count("moxin-picture") >= len(STAGES) - 1
