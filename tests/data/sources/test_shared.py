import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.sources.shared import shared_text
from data.sources.values import RowDropped, RowError

regex = pytest.importorskip("regex")


def test_a_prompt_of_a_pair_cuts_no_word_and_leaves_no_answer_empty():
    assert shared_text("The sky is blue.", "The sky is black.") == (
        "The sky is",
        " blue.",
        " black.",
    )
    assert shared_text("a b", "a b c") == ("a", " b", " b c")
    with pytest.raises(RowError, match="no prompt"):
        shared_text("blue", "black")


WORDS = st.text(alphabet="ab \n", max_size=12)


@given(WORDS, WORDS, WORDS)
def test_prompt_and_answers_of_a_pair_make_the_texts_again(
    opening: str, left: str, right: str
) -> None:
    try:
        prompt, chosen, rejected = shared_text(opening + left, opening + right)
    except (RowError, RowDropped):
        return
    assert prompt + chosen == opening + left
    assert prompt + rejected == opening + right
    assert prompt.strip() and chosen and rejected and chosen[0].isspace()


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected"),
    [
        ("问：第3盏灯在哪里？答：", "在花园里，靠近桥。", "我不知道。"),
        ("今天天气怎么样？", "我觉得很好。", "我觉得不好。"),
        ("質問：傘はどこですか。答え：", "玄関です。", "知りません。"),
        ("「傘はどこ？」", "玄関です。", "玄関じゃない。"),
        ("โคมไฟอยู่ที่ไหน", "ในสวน", "ริมน้ำ"),
        ("ຖາມ: ໂຄມໄຟຢູ່ໃສ? ຕອບ:", " ຢູ່ສວນ", " ບໍ່ຮູ້"),
        ("질문: 등불은 어디에 있습니까? 답:", " 정원에", " 강에"),
        ("질문:등불은?답:", "정원", "강"),
        ("प्रश्न: दीपक कहाँ है?", " बगीचे में।", " नदी में।"),
        ("سؤال: أين المصباح؟ الجواب:", " في الحديقة", " لا أعرف"),
        ("Q:lamp?A:", "garden", "river"),
        ("灯在花园", "里", "外"),
    ],
)
def test_a_prompt_ends_where_its_script_lets_a_reader_stop(prompt, chosen, rejected):
    assert shared_text(prompt + chosen, prompt + rejected) == (prompt, chosen, rejected)


def test_closing_marks_inside_words_cut_none():
    assert shared_text("He said don’t go", "He said don’x go")[0] == "He said"
    assert shared_text("It is 3.14 now", "It is 3.15 now")[0] == "It is"


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("灯👩\u200d👩\u200d👧好", "灯👩\u200d👩\u200d👦好"),
        ("灯👍\U0001f3fd", "灯👍\U0001f3ff"),
        ("灯🇫🇷", "灯🇫🇮"),
        ("กำ", "กา"),
        ("灯か\u3099い", "灯か\u309aい"),
        ("灯é", "灯e\u0301"),
        ("灯。\r\nx", "灯。\r\ny"),
    ],
)
def test_no_character_as_it_is_read_is_split(left, right):
    try:
        parts = shared_text(left, right)
    except RowError:
        return
    for text, rest in ((left, parts[1]), (right, parts[2])):
        assert regex.findall(r"\X", text)[-len(regex.findall(r"\X", rest)) :] == regex.findall(
            r"\X", rest
        )


READ = "灯在。？กำาเ\u0e34か\u3099한\u1112\u1161\u11ab👍\U0001f3fd🇫🇷🇮\u200d\ufe0f\u0301a \r\n"
PIECES = st.text(alphabet=READ, max_size=8)


@given(PIECES, PIECES, PIECES)
def test_cuts_are_boundaries_of_what_is_read_as_one_character(opening, left, right):
    try:
        prompt, chosen, rejected = shared_text(opening + left, opening + right)
    except (RowError, RowDropped):
        return
    for rest in (chosen, rejected):
        whole = regex.findall(r"\X", prompt + rest)
        places = {len("".join(whole[:count])) for count in range(len(whole) + 1)}
        assert len(prompt) in places
        assert prompt + rest in (opening + left, opening + right)
