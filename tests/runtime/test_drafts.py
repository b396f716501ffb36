"""What is drafted, from words for tokens: the same lists with numbers would say less."""

from __future__ import annotations

from pixelrt.drafts import KEPT, Drafts, Example, followers, nearest, rewritten
from pixelrt.generate import Codebook

NUMBERS: dict[str, int] = {}


def ids(text: str) -> list[int]:
    return [NUMBERS.setdefault(word, len(NUMBERS)) for word in text.split()]


def words(tokens: list[int]) -> str:
    names = {number: word for word, number in NUMBERS.items()}
    return " ".join(names[token] for token in tokens)


RUN = "S0 S1 S2 S3 S4 S5"
CODEBOOK = Codebook(tuple(ids(RUN)))
ONE = Example(ids("segment the red circle ."), ids(f"sure , the red circle {RUN} . END"))
TWO = Example(
    ids("segment the red circle and the blue star ."),
    ids(f"sure , the red circle {RUN} and the blue star {RUN} . END"),
)
ABSENT = Example(ids("where is the blue circle ?"), ids("there is no blue circle . END"))


def test_words_are_exchanged_as_in_the_question() -> None:
    question = ids("segment the green cross .")
    assert words(rewritten(ONE, question)) == f"sure , the green cross {RUN} . END"


def test_each_of_two_names_is_exchanged_where_it_stands() -> None:
    twice = Example(
        ids("segment the red circle and the red star ."),
        ids(f"sure , the red circle {RUN} and the red star {RUN} . END"),
    )
    question = ids("segment the blue circle and the green star .")
    assert words(rewritten(twice, question)) == f"sure , the blue circle {RUN} and the green star {RUN} . END"


def test_questions_of_other_lengths_are_aligned() -> None:
    question = ids("please segment the red star .")
    assert words(rewritten(ONE, question)) == f"sure , the red star {RUN} . END"


def test_the_nearest_example_has_the_same_form() -> None:
    """Not the one with the most words in common."""
    examples = [ONE, TWO, ABSENT]
    assert nearest(examples, ids("segment the blue star .")) is ONE
    assert nearest(examples, ids("segment the green cross and the red circle .")) is TWO
    assert nearest(examples, ids("where is the yellow circle ?")) is ABSENT
    assert nearest([], ids("where is it ?")) is None


def test_a_question_asked_before_is_drafted_whole() -> None:
    drafts = Drafts(CODEBOOK)
    draft = drafts.of(ids("what is here ?"))
    assert draft([]) == []
    drafts.learn(draft, ids("a star . END"))
    draft = drafts.of(ids("what is here ?"))
    assert words(draft([])) == "a star . END"
    drafts.learn(draft, ids("a star . END"))
    assert [example.hits for example in drafts.examples] == [1]


def test_examples_that_help_are_kept() -> None:
    drafts = Drafts(CODEBOOK, [Example(ids("what is here ?"), ids("a star . END"), hits=1)])
    for n in range(2 * KEPT):
        drafts.learn(drafts.of(ids(f"q{n} " * (n + 9))), ids(f"a{n}"))
    assert len(drafts.examples) == KEPT
    assert drafts.examples[0].hits == 1
    assert words(drafts.examples[-1].answer) == f"a{2 * KEPT - 1}"


def test_after_a_surprise_the_draft_is_taken_up_again() -> None:
    draft = Drafts(CODEBOOK, [ONE]).of(ids("segment the green cross ."))
    assert words(draft(ids("yes , the"))) == f"green cross {RUN} . END"
    # The words of the question, where the draft has none of them.
    other = Drafts(CODEBOOK, [ABSENT]).of(ids("segment the old red mug on it ."))
    assert words(other(ids("sure , the old"))) == "red mug on it ."


def test_the_rest_of_a_run_is_known() -> None:
    draft = Drafts(CODEBOOK).of(ids("segment it ."))
    assert words(draft(ids("sure S0"))) == "S1 S2 S3 S4 S5"
    assert words(draft(ids("S0 S1 S2 S3"))) == "S4 S5"
    assert draft(ids(RUN)) == []


def test_followers_are_those_of_the_last_place() -> None:
    assert words(followers(ids("a b c a b d e"), ids("a b"))) == "d e"
    assert followers(ids("a b"), ids("b")) == []
    assert followers(ids("a"), ids("a b")) == []
