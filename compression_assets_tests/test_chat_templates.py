"""Which template is used, with which settings; that no clock, chance or zone reaches its text; what it starts with."""

import time
from datetime import datetime
from pathlib import Path

import pytest
from pydantic import ValidationError
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from compression_assets.errors import StudyError
from compression_assets.sources.models import DirectoryModel, fetch_model
from compression_assets.sources.random_model import byte_tokenizer
from compression_assets.text import chat_template
from compression_assets.text.chat_template import TODAY, ChatTemplate, TemplateSettings, load_chat_template
from compression_assets.text.conversation import Message
from compression_assets_tests.chat_templates import FAMILIES, of_bytes
from compression_assets_tests.tiny_models import tiny_directory

HELLO = [Message("user", "hello"), Message("assistant", "hi")]
SHOWN = "{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}"


def with_template(template: str | dict[str, str]) -> PreTrainedTokenizerFast:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("form", ["%d %b %Y", "%A %H:%M:%S", "%s", "%z %Z|", "100%% %%s"])
def test_no_clock_and_no_time_zone_reaches_the_text(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    template = ChatTemplate(with_template("{{ strftime_now('" + form + "') }}" + SHOWN))
    texts = []
    for zone in ("Etc/GMT-14", "Etc/GMT+12"):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        texts.append(template.text(HELLO))
    monkeypatch.undo()
    time.tzset()
    assert texts[0] == texts[1]
    if "%s" not in form:
        assert texts[0].startswith(TODAY.strftime(form))
    assert template.about()["date"] == "2024-07-26"


def test_seconds_are_those_of_the_fixed_date_in_universal_time() -> None:
    text = ChatTemplate(with_template("{{ strftime_now('%s %%s') }}")).text(HELLO)
    assert text == f"{(TODAY - datetime(1970, 1, 1)).days * 86_400} %s"


def test_a_date_is_recorded_only_where_the_template_reads_it() -> None:
    assert ChatTemplate(byte_tokenizer()).about() == {"chat_template": None, "chat_template_kwargs": {}}


@pytest.mark.parametrize("drawn", ["{{ ['a', 'b'] | random }}", "{{ lipsum(1) }}"])
def test_templates_that_draw_text_by_chance_are_refused(drawn: str) -> None:
    with pytest.raises(StudyError, match="draws text by chance"):
        ChatTemplate(with_template(drawn + SHOWN))


@pytest.mark.parametrize("broken", ["{{ 1 // 0 }}", "{{ '{}'.format() }}", "{{ messages[9].content.x }}"])
def test_a_template_that_fails_is_a_sentence(broken: str) -> None:
    with pytest.raises(StudyError, match="refuses a conversation with the roles user, assistant"):
        ChatTemplate(with_template(SHOWN + broken)).text(HELLO)


def test_a_named_template_and_its_settings_are_used() -> None:
    tokenizer = with_template(
        {"default": "plain " + SHOWN, "tool_use": "{{ 'think ' if enable_thinking else 'no ' }}" + SHOWN}
    )
    assert ChatTemplate(tokenizer).text(HELLO).startswith("plain hello")
    for thinking, start in ((True, "think hello"), (False, "no hello")):
        settings = TemplateSettings(
            chat_template="tool_use", chat_template_kwargs={"enable_thinking": thinking}
        )
        template = ChatTemplate(tokenizer, settings)
        assert template.text(HELLO).startswith(start)
        assert template.about()["chat_template_kwargs"] == {"enable_thinking": thinking}
    with pytest.raises(StudyError, match="no chat template named 'rag'; it has default, tool_use"):
        ChatTemplate(tokenizer, TemplateSettings(chat_template="rag"))
    with pytest.raises(StudyError, match="no chat template named 'default'; it has rag"):
        ChatTemplate(with_template({"rag": SHOWN}))


def test_settings_cannot_take_the_place_of_messages() -> None:
    with pytest.raises(ValidationError, match="'messages' is set by the study itself"):
        TemplateSettings(chat_template_kwargs={"messages": "none"})


def test_named_templates_are_there_in_the_model_of_a_study(tmp_path: Path) -> None:
    made = tiny_directory(tmp_path / "made")
    with_template({"default": "plain " + SHOWN, "tool_use": "tools " + SHOWN}).save_pretrained(made)
    fetch_model(DirectoryModel(kind="directory", path=str(made)), tmp_path / "base", tmp_path)
    for name, start in ((None, "plain hello"), ("tool_use", "tools hello")):
        template = load_chat_template(tmp_path / "base", TemplateSettings(chat_template=name))
        assert template.text(HELLO).startswith(start)


def test_named_templates_go_with_the_tokenizer(tmp_path: Path) -> None:
    from compression_assets.weights.checkpoints import copy_tokenizer

    with_template({"default": SHOWN, "tool_use": "tools " + SHOWN}).save_pretrained(tmp_path / "one")
    copy_tokenizer(tmp_path / "one", tmp_path / "other")
    again = AutoTokenizer.from_pretrained(tmp_path / "other")
    assert again.chat_template == {"default": SHOWN, "tool_use": "tools " + SHOWN}


def test_named_templates_of_a_directory_count_as_its_content(tmp_path: Path) -> None:
    from compression_assets.sources.local import local_files

    with_template({"default": SHOWN, "tool_use": "tools " + SHOWN}).save_pretrained(tmp_path)
    names = [file.name for file in local_files(DirectoryModel(kind="directory", path=str(tmp_path)))]
    assert "tool_use.jinja" in names and "chat_template.jinja" in names


def without_template(adds_bos: bool) -> PreTrainedTokenizerFast:
    from tokenizers.processors import TemplateProcessing

    backend = of_bytes()
    backend.add_special_tokens(["<bos>", "<eos>"])
    if adds_bos:
        first = ("<bos>", backend.token_to_id("<bos>"))
        backend.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[first])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>")


def test_without_a_template_the_tokenizers_own_first_token_is_there() -> None:
    said = "user:\nhello<eos>\nassistant:\nhi<eos>\n"
    assert ChatTemplate(without_template(adds_bos=True)).text(HELLO) == "<bos>" + said
    assert ChatTemplate(without_template(adds_bos=False)).text(HELLO) == said
    assert ChatTemplate(without_template(adds_bos=True)).text(HELLO[:1], reply=True).endswith("assistant:\n")


def test_a_refusal_never_prints_what_is_longer_than_200_characters() -> None:
    tokenizer = with_template("{{ raise_exception('bad: ' + messages[0]['content']) }}")
    with pytest.raises(StudyError) as found:
        ChatTemplate(tokenizer).text([Message("user", "x" * 3_000_000)])
    assert len(str(found.value)) < 500
    with pytest.raises(StudyError) as found:
        ChatTemplate(FAMILIES["Mistral"].tokenizer()).text([Message("user", "x")] * 5_000)
    assert len(str(found.value)) < 700


def test_errors_of_any_kind_inside_a_template_are_refusals() -> None:
    for broken in ("{{ 1 + 'a' }}", "{{ messages[99]['content']['x'] }}", "{{ undefined_thing.x }}"):
        with pytest.raises(StudyError, match="chat template refuses"):
            ChatTemplate(with_template(broken)).text(HELLO)


def test_the_plain_template_names_the_end_token() -> None:
    assert "eos_token" in chat_template.PLAIN_TEMPLATE
