"""What the editor shows in other languages: nodes, the texts of web/*.js, help pages. English is in the schemas."""

import json
import re

import pytest
from commands import english_help
from harness.host import ROOT
from harness.sentences import sentences
from harness.server import PACK_NAME
from harness.workflow import inputs_of

SCRIPT = {"zh": r"[\u4e00-\u9fff]", "ko": r"[\uac00-\ud7a3]"}  # one character of it at least is in every sentence
NAMED = {"zh": r"\*\*([^*]+)\*\*（`(\w+)`）", "ko": r"\*\*([^*]+)\*\*\(`(\w+)`\)"}  # an input's name and its id
KEPT = re.compile(r"\w*_\w*|\d+(?:\.\d+)?")  # numbers, option values, inputs' ids
MESSAGE_SYNTAX = set("@{}|<")  # what the editor's vue-i18n would read as more than text


@pytest.fixture(params=SCRIPT)
def language(request) -> str:
    return request.param


@pytest.fixture
def translations(client, language) -> dict[str, dict]:
    return json.loads(client.get("/i18n"))[language]["nodeDefs"]


def test_no_language_is_left_out_of_these_tests():
    assert {folder.name for folder in (ROOT / "locales").iterdir()} == set(SCRIPT)


def test_every_node_input_and_output_is_translated_and_no_other(translations, ours):
    assert set(translations) == set(ours)
    for node, given in translations.items():
        assert list(given) == ["display_name", "description", "inputs", "outputs"]
        assert set(given["inputs"]) == {name for name, *_ in inputs_of(ours[node])}, node
        assert all(set(texts) == {"name", "tooltip"} for texts in given["inputs"].values()), node
        # The editor has names of its own for outputs that are called as their type.
        assert [set(texts) for texts in given["outputs"].values()] == [
            {"tooltip"} | ({"name"} if name != kind else set())
            for name, kind in zip(ours[node]["output_name"], ours[node]["output"], strict=True)], node
        assert list(given["outputs"]) == [str(index) for index in range(len(ours[node]["output"]))]


def test_texts_are_plain_and_in_the_language(translations, language):
    def texts(given):
        for key, value in given.items():
            if isinstance(value, dict):
                yield from texts(value)
            else:
                yield key, value

    for key, text in texts(translations):
        assert text == text.strip() != ""
        assert not MESSAGE_SYNTAX & set(text), text
        assert key in ("name", "display_name") or re.search(SCRIPT[language], text), text


def test_option_values_and_numbers_stay_as_they_are(translations, ours):
    for node, given in translations.items():
        for name, _, options, _ in inputs_of(ours[node]):
            english, text = options["tooltip"], given["inputs"][name]["tooltip"]
            values = [value for value in options.get("options", []) if re.search(rf"\b{value}\b", english)]
            for value in [*values, *KEPT.findall(english)]:
                label = given["inputs"].get(value, {}).get("name", value)  # an input may be called as it is shown
                assert value in text or label in text, f"{node}.{name}: {value}"


def test_what_is_one_in_english_is_one_in_translation(translations, ours):
    found = {}
    for node, given in translations.items():
        for name, _, options, _ in inputs_of(ours[node]):
            text = given["inputs"][name]
            assert found.setdefault((name, options["tooltip"]), text) == text, f"{node}.{name}"


def test_help_pages(client, language, translations, ours):
    for node in ours:
        english, page = (client.get(f"/extensions/{PACK_NAME}/docs/{node}/{name}.md").decode("utf-8")
                         for name in ("en", language))
        pictures = r"!\[.+\]\((.+)\)"
        assert re.findall(pictures, page) == re.findall(pictures, english), node
        assert len(re.findall("^#", page, re.M)) == len(re.findall("^#", english, re.M)), node
        assert page.startswith(f"# {translations[node]['display_name']}\n")
        inputs = {name for name, *_ in inputs_of(ours[node])}
        explained = re.findall(NAMED[language], page)
        assert all(translations[node]["inputs"][name]["name"] == shown for shown, name in explained
                   if name in inputs), node
        bullets = re.findall(r"^- (`.+?):", english.split("## Outputs")[0], re.M)
        listed = re.findall(r"`(\w+)`", " ".join(bullets))
        assert inputs & set(listed) <= {name for _, name in explained}, node


def test_help_pages_name_every_node_as_the_editor_does(client, language, translations):
    quoted = {"zh": r"“(PAG [^”（]+)", "ko": r"'(PAG [^'(]+)"}[language]
    names = {re.split(r" ?[（(]", given["display_name"])[0] for given in translations.values()}
    names |= {texts["name"] for given in translations.values() for texts in given["inputs"].values()}
    for node in translations:
        page = client.get(f"/extensions/{PACK_NAME}/docs/{node}/{language}.md").decode("utf-8")
        assert {name.strip() for name in re.findall(quoted, page)} <= names, node


def test_texts_of_the_picker_and_the_plot(client, language):
    translated = json.loads(client.get("/i18n"))[language]["pag"]
    written = {text for path in (ROOT / "web").glob("*.js") for text in texts_in(path.read_text(encoding="utf-8"))}
    models = [json.loads(client.post("/pag/model", source)) for source in (
        {"loader": {"node": "PAGADMLoader", "input": "ckpt_name", "file": "adm-emoji-64.safetensors"}},
        *({"family": family} for family in json.loads(client.get("/pag/families"))["families"]))]
    answered = {part["title"] for model in models for part in [*model["columns"], *model["presets"]]}
    answered |= {preset["about"] for model in models for preset in model["presets"]
                 if preset["about"] and preset["about"] != model["source"]}
    answered |= {json.loads(client.post("/pag/plot", question))["note"] for question in ({}, {"cfg": 5})}
    sentences = {text for text in answered if " " in text}  # the others may be words of the layer grammar
    assert written | sentences <= set(translated)
    presets = (ROOT / "nodes" / "host" / "editor" / "presets.py").read_text(encoding="utf-8")  # some fit other models
    assert all(f'"{text}"' in presets for text in set(translated) - written - answered)
    for english, text in translated.items():
        assert re.search(SCRIPT[language], text), text
        assert sorted(re.findall(r"\{\w+\}", text)) == sorted(re.findall(r"\{\w+\}", english)), text


def texts_in(script: str) -> list[str]:
    """The texts of t("...") calls, of which one may join two lines or choose between two."""
    calls = re.findall(r'\bt\(([^()"]*(?:"[^"]*"[^()"]*)+)', script)
    return [text for call in calls for text in re.findall('"([^"]*)"', re.sub(r'"\s*\+\s*"', "", call))]


def test_the_servers_sentences(client, language):
    """What an editor's panel shows of them; a sentence that is not here stays English."""
    translated = json.loads(client.get("/i18n"))[language]["pag_server"]
    said = set(sentences("pag_core", "nodes")) | {"This model has: {0}; also all, auto."}
    assert set(translated) <= said
    grammar = set(sentences("pag_core/selection.py", "pag_core/checks.py"))
    assert len(grammar & set(translated)) >= 0.9 * len(grammar)
    for english, text in translated.items():
        assert re.search(SCRIPT[language], text), text
        assert sorted(re.findall(r"\{\d+\}", text)) == sorted(re.findall(r"\{\d+\}", english)), text


def test_english_help_stands_in_for_every_other_language():
    for copy, page in english_help.copies().items():
        assert copy.read_bytes() == page.read_bytes(), f"{copy.name}: run python -m commands.english_help"
