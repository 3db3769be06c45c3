"""Instruction examples and preference pairs, built from the data cards of this repository and from task generators.

    conversations, python_docs, help_pages --+--> examples -> split by source item -> decontaminate -> instructions
    generators of `tasks.py`, four languages -+                                            |
                                                        test and train, each on its side: pairs -> preferences

`data_cards/instructions` (train.parquet, test.parquet), one row an example:

    id           string   unique over both files
    messages     list<struct<role: string, content: string>>, roles user and assistant in turn, the last one assistant
    origin       string   the card and the item in it, or `generated: <task>`
    source_item  string   the key of the split. For rows from a card it is stage 01's page key, `<card>/<page>`
    task         string   what is asked, for example `identify_language`, `last_item`, `translate`
    language     string   en, zh, ja or ko: the language of the instruction
    difficulty   int64    1: a model of a few million parameters learns it in a minute; 2: harder; 3: open or long
    verifier     string or null. A JSON object: {"kind": "exact", "answer": "42"}; null where no rule can decide
    license      string   SPDX identifier: that of the card that the text is from, CDLA-Permissive-2.0 if generated

`data_cards/preferences` (train.parquet, test.parquet), one row a pair of answers to one prompt:

    id           string   unique over both files
    prompt       list<struct<role: string, content: string>>, the last message is the user's
    chosen       the same type: one assistant message
    rejected     the same type: one assistant message, another one
    construction string   `constructed corruption: <kind>`; pairs sampled from a model say `on-policy`
    verifier, origin, source_item, task, language, difficulty, license: those of the example that the pair is made from

Rule of an `exact` verifier: an answer is right if after Unicode NFKC, without white space at its ends and without one final
`.` or `\u3002`, it equals `answer`. `tasks.is_right` applies it.

Guarantees: the same cards give the same bytes; a source item is on one side only; a row of `test` comes from a page that
stage 01 holds out (share 0.08, seed 0), or from operands that no row of `train` in any language has; a row of `train` comes
from no such page.
Does not: hold for stage 01 under another seed (its held-out pages are then others: filter by `source_item`), or judge answers.
"""
