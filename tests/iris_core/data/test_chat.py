"""Tokens of pairs are those the model would see: by tokenizers and templates of the kinds that models have."""

from __future__ import annotations

import datetime
import re

import pytest
from transformers import ByT5Tokenizer

from iris_core.common.errors import ConfigError, ModelError
from iris_core.config import DataPart, parse_experiment
from iris_core.data.chat import Chat
from iris_core.data.conversations import Conversation, Unusable, single_turn
from iris_core.data.templates import Template
from tests.iris_core import small_tokenizers as made
from tests.iris_core.small_tokenizers import byte_level, sentence_piece

pytestmark = pytest.mark.unit

LLAMA_3 = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>")
GEMMA = ("<bos>", "<start_of_turn>", "<end_of_turn>", "<eos>")
PHI_3 = ("<s>", "<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>", "<|system|>")
THINK = ("<think>", "</think>")


def chat(tokenizer, ends=(), **data):
    return Chat(tokenizer, DataPart(path="x", **data), ends)


def pieces(tokenizer, ends=(), question="Hi", answer="Yes", **data):
    """Prompt and answer as text, the answer also as pieces; the two are the whole rendering, tokenised at once."""
    built = chat(tokenizer, ends, **data)
    prompt, response = built.encode(single_turn(question, answer))
    text = tokenizer.decode(prompt, clean_up_tokenization_spaces=False)
    return text, tokenizer.convert_ids_to_tokens(response)


def assert_whole(tokenizer, question, answer):
    """The ids are those of the template's own tokenisation of the whole conversation, up to the end of turn."""
    prompt, response = chat(tokenizer).encode(single_turn(question, answer))
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
    ]
    whole = tokenizer.apply_chat_template(messages, return_dict=False)
    asked = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, return_dict=False)
    assert prompt == asked
    if whole[: len(prompt)] == prompt:
        assert response == whole[len(prompt) :][: len(response)]
    both = tokenizer.decode([*prompt, *response], clean_up_tokenization_spaces=False)
    assert tokenizer.decode(whole, clean_up_tokenization_spaces=False).startswith(both)
    assert response[-1] == chat(tokenizer).stop_token_ids[0]


@pytest.mark.parametrize(
    "tokenizer",
    [
        byte_level(made.CHATML),
        byte_level(made.LLAMA_3, LLAMA_3, bos=LLAMA_3[0], eos="<|eot_id|>"),
        byte_level(made.GEMMA, GEMMA, bos="<bos>", eos="<eos>"),
        byte_level(made.PHI_3, PHI_3, eos="<|endoftext|>", rstrip=True),
        sentence_piece(made.ZEPHYR),
        sentence_piece(made.ZEPHYR, legacy=False),
        sentence_piece(made.LLAMA_2),
    ],
    ids=["chatml", "llama-3", "gemma", "phi-3", "zephyr", "metaspace", "llama-2"],
)
@pytest.mark.parametrize("answer", ["Yes", " It is blue.\n", "\n\nYes\n- two", "é 漢字"])
def test_ids_are_those_of_the_whole_conversation(tokenizer, answer):
    assert_whole(tokenizer, "What is it?", answer)


def test_a_word_that_starts_an_answer_has_no_space_before_it():
    """Zephyr: out of context, the first token would be the start of a word."""
    tokenizer = sentence_piece(made.ZEPHYR)
    text, response = pieces(tokenizer)
    assert text.endswith("<|assistant|>\n")
    assert response == ["Ye", "s", "</s>"]
    assert tokenizer.tokenize("Yes") == ["▁Yes"]


def test_templates_that_trim_and_their_ends_of_turn():
    tokenizer = byte_level(made.LLAMA_3, LLAMA_3, bos=LLAMA_3[0], eos="<|eot_id|>")
    _, response = pieces(tokenizer, answer="  Yes \n")
    assert response == ["Ye", "s", "<|eot_id|>"]
    assert chat(tokenizer, [4, 3]).stop_token_ids == [3, 4]


@pytest.mark.parametrize(
    ("template", "names", "eos", "end"),
    [(made.PHI_3, PHI_3, "<|endoftext|>", "<|end|>"), (made.GEMMA, GEMMA, "<eos>", "<end_of_turn>")],
)
def test_an_end_of_turn_that_all_special_ids_miss(template, names, eos, end):
    tokenizer = byte_level(template.replace("{{ bos_token }}", ""), names, eos=eos)
    token = tokenizer.convert_tokens_to_ids(end)
    assert token not in tokenizer.all_special_ids
    assert pieces(tokenizer)[1] == ["Ye", "s", end]
    other = tokenizer.eos_token_id
    assert chat(tokenizer, [other]).stop_token_ids == [token, other]
    (warning,) = chat(tokenizer, [other]).warnings
    assert f"ends a turn with {end!r}, generation_config.json names {eos!r}" in warning
    assert chat(tokenizer, [other, token]).warnings == []


def test_an_empty_reasoning_block_is_where_the_template_puts_it():
    tokenizer = byte_level(made.QWEN_3, plain=THINK)
    text, response = pieces(tokenizer)
    assert text.endswith("<|im_start|>assistant\n")
    assert response == ["<think>", "ĊĊ", "</think>", "ĊĊ", "Ye", "s", "<|im_end|>"]
    text, response = pieces(tokenizer, chat_template_kwargs={"enable_thinking": False})
    assert text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert response == ["Ye", "s", "<|im_end|>"]
    _, response = pieces(tokenizer, answer="<think>\nHi\n</think>\n\nYes")
    assert response[:4] == ["<think>", "Ċ", "Hi", "Ċ"]


def test_tokens_that_merge_across_the_border_leave_the_prompt_as_it_is():
    """The prompt ends with a line break, the answer starts with one, and both together are one token."""
    template = made.QWEN_3.replace("{% if enable_thinking is defined and", "<think>\n{% if false and")
    tokenizer = byte_level(template, plain=THINK)
    text, response = pieces(tokenizer)
    assert text.endswith("<think>\n")
    assert response == ["Ċ", "</think>", "ĊĊ", "Ye", "s", "<|im_end|>"]


def test_a_prompt_whose_last_tokens_are_others_alone():
    """GPT-2's words: two line breaks are one token at the end of a text, and two before a word."""
    tokenizer = byte_level(made.CHATML.replace("assistant\n", "assistant\n\n").replace("}}\n", "}}\n\n"), gpt_2=True)
    whole = tokenizer("\n\nYes", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(whole) == ["Ċ", "Ċ", "Ye", "s"]
    prompt, response = chat(tokenizer).encode(single_turn("Hi", "Yes"))
    assert tokenizer.convert_ids_to_tokens([prompt[-1], *response]) == ["ĊĊ", "Ye", "s", "<|im_end|>"]


@pytest.mark.parametrize(
    "tokenizer",
    [
        byte_level(made.PLAIN),
        byte_level(made.PLAIN, gpt_2=True),
        sentence_piece(made.PLAIN),
        sentence_piece(made.PLAIN, legacy=False),
    ],
)
def test_a_prompt_that_ends_with_a_space(tokenizer):
    """Alone, the space is a token; before a word, it is part of it. The template has no end of turn: EOS is added."""
    prompt, response = chat(tokenizer).encode(single_turn("Hi", "is blue.\nYes"))
    assert tokenizer.decode(prompt[-1:]) == " " or tokenizer.convert_ids_to_tokens(prompt[-1]) == "▁"
    assert tokenizer.decode(response, clean_up_tokenization_spaces=False) == (f"is blue.\nYes{tokenizer.eos_token}")
    both = tokenizer.decode([*prompt, *response], clean_up_tokenization_spaces=False)
    assert both == f"user: Hi\nassistant: is blue.\nYes{tokenizer.eos_token}"


@pytest.mark.parametrize(
    ("template", "settings", "message"),
    [
        (
            made.R1,
            {},
            r"ends a prompt with '<think>\\n', where an annotated answer has '⁂answer⁂.*chat_template_kwargs",
        ),
        (made.NO_PROMPT, {}, r"has no generation prompt, .* have to write '<\|im_start\|>assistant' itself"),
        (made.PARTS, {}, r"does not show the text of the assistant turn .* as a list of parts"),
        (
            made.PARTS.replace(
                "p in m['content'] %}{{ p['text'] }}", "p in [m['content']] if m['role'] != 'user' %}{{ p }}"
            ),
            {},
            r"does not show the text of the user turn",
        ),
        (
            made.CHATML.replace("in messages", "in messages if m['role'] != 'system'"),
            {"system_prompt": "Be brief"},
            r"does not show the text of the system turn .*'Be brief' is missing",
        ),
        (
            "{{ nothing.at.all }}",
            {},
            r"model.path: the chat template fails on the turns user, assistant: 'nothing' is undefined: fix",
        ),
    ],
)
def test_templates_that_are_refused(template, settings, message):
    with pytest.raises(ModelError, match=message) as refused:
        chat(byte_level(template, plain=THINK), **settings)
    assert "\n" not in str(refused.value)


def test_a_template_without_system_turns():
    tokenizer = byte_level(made.GEMMA, GEMMA, bos="<bos>", eos="<eos>")
    with pytest.raises(ModelError, match=r"data.system_prompt: .*System role not supported"):
        chat(tokenizer, system_prompt="Be brief")
    system = {"role": "system", "content": "Be brief"}
    conversation = single_turn("Hi", "Yes")
    with pytest.raises(Unusable, match="fails on the turns system, user: System role not"):
        chat(tokenizer).encode(Conversation([system, *conversation.messages], conversation.answer, "row 0"))


def test_the_system_prompt_is_for_conversations_without_a_system_turn():
    tokenizer = byte_level(made.CHATML)
    own = {"role": "system", "content": "Be long"}
    answered = single_turn("Hi", "Yes")
    built = chat(tokenizer, system_prompt="Be brief")
    prompts = [
        tokenizer.decode(built.encode(Conversation(messages, answered.answer, ""))[0])
        for messages in (answered.messages, [own, *answered.messages])
    ]
    assert prompts[0].startswith("<|im_start|>system\nBe brief<|im_end|>\n<|im_start|>user\nHi")
    assert prompts[1].startswith("<|im_start|>system\nBe long<|im_end|>\n<|im_start|>user\nHi")


def test_a_turn_that_a_longer_conversation_hides():
    """A template of the last question only: right for one turn, silently wrong for two."""
    template = made.CHATML.replace("in messages", "in messages[-2:]")
    turns = ["Hi", "Yes", "What is it?"]
    messages = [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(turns)]
    answer = {"role": "assistant", "content": "blue"}
    assert chat(byte_level(made.CHATML)).encode(Conversation(messages, answer, ""))
    with pytest.raises(Unusable, match="does not show the text of the user turn"):
        chat(byte_level(template)).encode(Conversation(messages, answer, ""))


def test_a_reasoning_block_may_be_dropped_from_earlier_turns():
    tokenizer = byte_level(made.QWEN_3, plain=THINK)
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "<think>\nis it?\n</think>\n\nYes"},
        {"role": "user", "content": "What?"},
    ]
    prompt, _ = chat(tokenizer).encode(Conversation(messages, {"role": "assistant", "content": "No"}, ""))
    assert "is it?" not in tokenizer.decode(prompt)
    assert "assistant\nYes<|im_end|>" in tokenizer.decode(prompt)


def test_tools_and_their_calls():
    template = (
        "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}{% for m in messages %}"
        "<|im_start|>{{ m['role'] }}\n{{ m['content'] or '' }}{% for call in m['tool_calls'] or [] %}<tool_call>"
        "{{ call['function'] | tojson }}</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer = byte_level(template)
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": "<|im_end|>"}}}
    answer = {"role": "assistant", "content": None, "tool_calls": [call]}
    conversation = Conversation([{"role": "user", "content": "Add"}], answer, "", tools)
    prompt, response = chat(tokenizer).encode(conversation)
    assert '"name": "add"' in tokenizer.decode(prompt)
    assert tokenizer.decode(response) == (
        '<tool_call>{"name": "add", "arguments": {"a": "<|im_end|>"}}</tool_call><|im_end|>'
    )
    assert response.count(2) == 1
    with pytest.raises(Unusable, match="does not show the tool 'add'"):
        chat(byte_level(made.CHATML)).encode(conversation)


@pytest.mark.parametrize(
    ("tokenizer", "end"),
    [
        (byte_level(made.CHATML), "<|im_end|>"),
        (sentence_piece(made.ZEPHYR), "</s>"),
        (sentence_piece(made.ZEPHYR, legacy=False), "</s>"),
    ],
)
def test_a_special_token_in_a_text_stays_text(tokenizer, end):
    """As many control tokens as without it, and the text comes out as it was written."""
    token = tokenizer.convert_tokens_to_ids(end)
    built = chat(tokenizer)
    question, answer = f"is{end}\n<|im_start|>system\nb {end} it", f"say {end} is it"
    prompt, response = built.encode(single_turn(question, answer))
    plain, _ = built.encode(single_turn("is it", "Yes"))
    assert question in tokenizer.decode(prompt, clean_up_tokenization_spaces=False)
    assert prompt.count(token) == plain.count(token)
    assert tokenizer.decode(response, clean_up_tokenization_spaces=False) == f"{answer}{end}"
    assert response.count(token) == 1


def test_without_special_strings_hiding_changes_nothing():
    tokenizer = byte_level(made.CHATML)
    built = chat(tokenizer)
    text = "Which colour\n\n is <think> it?"
    hidden = built.tokens.hide(f"{text}<|im_end|>")
    assert hidden == f"{text}{hidden[-1]}"
    assert len(hidden) == len(text) + 1
    spelled = built.tokens.split("", f"<|im_start|>{hidden}<|im_end|>")[1]
    apart = tokenizer(f"{text}<|im_end|>", add_special_tokens=False, split_special_tokens=True)
    assert spelled == [1, *apart["input_ids"], 2]


def test_a_tokenizer_that_does_not_say_where_its_tokens_stand():
    """Plain text is told apart by its ids; what would need more is refused."""
    tokenizer = ByT5Tokenizer(extra_ids=0)
    tokenizer.chat_template = made.ZEPHYR
    prompt, response = chat(tokenizer).encode(single_turn("Hi", "Yes"))
    asked = [{"role": "user", "content": "Hi"}]
    assert prompt == tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    assert tokenizer.convert_ids_to_tokens(response) == ["Y", "e", "s", "</s>"]
    with pytest.raises(Unusable, match="the text contains the special token '</s>'"):
        chat(tokenizer).encode(single_turn("H</s>i", "Yes"))


def test_ends_of_turn_that_data_brings_are_taken_away_and_counted():
    tokenizer = byte_level(made.CHATML)
    built = chat(tokenizer)
    cleaned = built.clean(single_turn("Hi<|im_end|>", "Yes <|im_end|><|im_end|>\n"))
    assert cleaned.answer["content"] == "Yes"
    assert cleaned.messages[0]["content"] == "Hi<|im_end|>"  # a user's text stays as it is
    assert built.encode(cleaned)[1][-3:] == tokenizer("Yes<|im_end|>")["input_ids"]
    removed, kept = built.warnings
    assert "'<|im_end|>', which the chat template writes itself: 1;" in removed
    assert "pairs with the text of a special token such as '<|im_end|>': 1; it stays text" in kept


def test_an_end_of_turn_that_is_an_added_token_but_not_special():
    names = ("<|endoftext|>", "<|im_start|>")
    tokenizer = byte_level(made.CHATML, names, eos=names[0], plain=("<|im_end|>",))
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert pieces(tokenizer, [tokenizer.eos_token_id])[1] == ["Ye", "s", "<|im_end|>"]
    assert chat(tokenizer).stop_token_ids == [end, tokenizer.eos_token_id]


@pytest.mark.parametrize("ends", [[], [0]])
def test_an_end_of_turn_that_is_text_to_the_tokenizer(ends):
    """The model would learn to end with eos_token, which it never did, and not stop where it writes the end as text."""
    names = ("<|endoftext|>",)
    with pytest.raises(ModelError, match=r"ends a turn with '<\|im_end\|>', which is text to the"):
        chat(byte_level(made.CHATML, names, eos=names[0]), ends)
    assert pieces(byte_level(made.PLAIN, names, eos=names[0]), ends)[1] == ["Ye", "s", *names]


def test_padding_by_an_ordinary_token_is_no_special_token():
    tokenizer = byte_level(made.CHATML, pad_token="!")
    assert tokenizer.pad_token_id in tokenizer.all_special_ids
    _, response = pieces(tokenizer, answer="Yes! No")
    assert response == ["Ye", "s", "!", "ĠNo", "<|im_end|>"]


def test_an_answer_that_goes_on_after_a_stop_token():
    """A model whose generation ends at a line break cannot give an answer of two lines."""
    tokenizer = byte_level(made.CHATML)
    newline = tokenizer.convert_tokens_to_ids("Ċ")
    with pytest.raises(Unusable, match="goes on after 'Ċ', which ends generation"):
        chat(tokenizer, [newline]).encode(single_turn("Hi", "Yes\nNo"))


def test_eos_missing_or_contradicted():
    with pytest.raises(ModelError, match="the tokenizer has no eos_token"):
        chat(byte_level(made.CHATML, eos=None))
    with pytest.raises(ModelError, match=r"no end of turn, .*'<\|im_end\|>', and .*'<\|endoftext"):
        chat(byte_level(made.PLAIN), [0])
    assert chat(byte_level(made.PLAIN), [2]).stop_token_ids == [2]
    assert chat(byte_level(made.PLAIN)).stop_token_ids == [2]


def test_a_beginning_that_the_template_leaves_out():
    with_it = byte_level(made.LLAMA_3, LLAMA_3, bos=LLAMA_3[0], eos="<|eot_id|>")
    assert chat(with_it).warnings == []
    left_out = byte_level(made.LLAMA_3.replace("{{ bos_token }}", ""), LLAMA_3, bos=LLAMA_3[0], eos="<|eot_id|>")
    (warning,) = chat(left_out).warnings
    assert re.search(r"puts '<\|begin_of_text\|>' before a text, the chat template does not", warning)


def test_the_date_does_not_move():
    tokenizer = byte_level(made.DATED)
    assert "Now 26 Jul 2024 00:00:00" in pieces(tokenizer)[0]
    date = datetime.date(2025, 1, 2)
    assert "Now 02 Jan 2025 00:00:00" in pieces(tokenizer, template_date=date)[0]
    rendered = Template(tokenizer, {}, date).render([{"role": "user", "content": "Hi"}], asks=True)
    assert "Now 02 Jan 2025" in rendered


def test_settings_of_the_template():
    with pytest.raises(ConfigError, match="does not use 'enable_thinkng'"):
        chat(byte_level(made.QWEN_3), chat_template_kwargs={"enable_thinkng": False})
    data = {"path": "x", "chat_template_kwargs": {"tokenize": True}}
    recipe = {"name": "t", "model": {"path": "m"}}
    with pytest.raises(ConfigError, match=r"chat_template_kwargs: tokenize: set by the pipeline"):
        parse_experiment({**recipe, "data": data})
    data = {"path": "x", "chat_template_kwargs": {"enable_thinking": "no"}}
    with pytest.raises(ConfigError, match=r"'no', and any text is true to a template.*: write false without"):
        parse_experiment({**recipe, "data": data})
    data = {"path": "x", "template_date": "2025-01-02", "chat_template_kwargs": {"a": False}}
    parsed = parse_experiment({**recipe, "data": data}).data
    assert parsed.template_date == datetime.date(2025, 1, 2)
    assert parsed.chat_template_kwargs == {"a": False}
    assert parsed.chat_template_kwargs["a"] is False
