"""Which examples every candidate sees: nothing is dropped silently, and nothing is cut behind somebody's back."""

from pathlib import Path

import numpy as np
import pytest

from backbones.registry import get_spec, load_codec
from orchestrator.data.examples import Example, Turn
from orchestrator.data.parity import Parity, check_parity, compare_tokenizers, load_selection, save_selection
from orchestrator.data.prepare import Prepared, prepare
from orchestrator.data.sources.dataset import held
from orchestrator.errors import SpecError

LENGTH = 64


def talk(question: str, answer: str) -> Example:
    return Example("g", (Turn("user", question), Turn("assistant", answer)))


SHORT = talk("Yes or no?", "Yes.")
WORDY = talk("Why is that?", "the and the and the and the and the and the and")  # too long where a token is a byte
LONG = talk("Why?", "because and " * 60 + "so")
LATE = talk("the and " * 60 + "so?", "No.")  # the answer comes too late for all
TRAIN = (SHORT, WORDY, LONG, LATE, talk("Again?", "No."))
HELD_OUT = (talk("What?", "That."), talk("A tag?", "<image> it is"), LONG)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> list[Prepared]:
    folder = tmp_path_factory.mktemp("prepared")
    return [
        prepare(
            backbone_id,
            load_codec(get_spec(backbone_id), max_length=LENGTH),
            held("train", TRAIN),
            held("validation", HELD_OUT),
            folder,
        )
        for backbone_id in ("tiny-qwen", "tiny-mistral")
    ]


def lists(parity: Parity) -> dict[str, list[int]]:
    return {backbone_id: kept.tolist() for backbone_id, kept in parity.kept.items()}


def test_an_example_that_one_candidate_would_cut_is_dropped_for_all(prepared: list[Prepared]) -> None:
    parity = compare_tokenizers(prepared, LENGTH, "intersection")

    assert lists(parity) == {"tiny-qwen": [0, 4], "tiny-mistral": [0, 4]}
    assert parity.dropped["too_long"] == 3
    assert parity.dropped["no_target"] == 0
    cut = {backbone_id: facts["examples_cut"] for backbone_id, facts in parity.backbones.items()}
    assert cut == {"tiny-qwen": 2, "tiny-mistral": 3}


def test_per_backbone_each_candidate_keeps_what_it_can_learn_from(prepared: list[Prepared]) -> None:
    parity = compare_tokenizers(prepared, LENGTH, "per_backbone")

    assert lists(parity) == {"tiny-qwen": [0, 1, 2, 4], "tiny-mistral": [0, 1, 2, 4]}
    assert parity.dropped["too_long"] == 0
    assert parity.dropped["no_target"] == 1
    for facts in parity.backbones.values():
        assert facts["examples_without_target"] == 1
        assert facts["kept"] == 4


def test_a_held_out_item_that_one_tokenizer_cannot_give_back_is_dropped_for_all(prepared: list[Prepared]) -> None:
    for candidates in (prepared, prepared[::-1], prepared[1:]):
        parity = compare_tokenizers(candidates, LENGTH, "intersection")
        assert parity.scored.tolist() == [0, 2]
        assert parity.dropped["does_not_round_trip"] == 1
    alone = compare_tokenizers(prepared[:1], LENGTH, "intersection")
    assert alone.scored.tolist() == [0, 1, 2]


def test_held_out_items_are_never_dropped_for_their_length(prepared: list[Prepared]) -> None:
    for rule in ("intersection", "per_backbone"):
        assert 2 in compare_tokenizers(prepared, 8, rule).scored


def test_a_single_backbone_drops_what_it_would_cut(prepared: list[Prepared]) -> None:
    assert lists(compare_tokenizers(prepared[:1], LENGTH, "intersection")) == {"tiny-qwen": [0, 1, 4]}


def test_nothing_left_to_train_on_is_an_input_error_with_the_remedy(prepared: list[Prepared]) -> None:
    parity = compare_tokenizers(prepared, 8, "intersection")
    with pytest.raises(SpecError, match=r"no training example fits tiny-qwen at recipe.sequence_length 8; raise it"):
        check_parity(parity, "compare.yaml", 8)


def test_nothing_left_to_score_is_an_input_error_with_the_remedy(prepared: list[Prepared]) -> None:
    parity = compare_tokenizers(prepared, LENGTH, "intersection")
    check_parity(parity, "compare.yaml", LENGTH)
    nothing = Parity(parity.kept, np.array([], np.int64), parity.dropped, parity.backbones)
    with pytest.raises(SpecError, match=r"check recipe.data.validation"):
        check_parity(nothing, "compare.yaml", LENGTH)


def test_a_selection_is_read_as_it_was_written(prepared: list[Prepared], tmp_path: Path) -> None:
    parity = compare_tokenizers(prepared, LENGTH, "per_backbone")
    save_selection(tmp_path / "new" / "selection.npz", parity, "tiny-mistral")
    kept, scored = load_selection(str(tmp_path / "new" / "selection.npz"))
    assert kept.tolist() == [0, 1, 2, 4]
    assert scored.tolist() == [0, 2]
