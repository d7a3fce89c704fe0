"""Which finished cells are taken over by a comparison with other candidates, and what is said of those that are not."""

from pathlib import Path

import pytest
from compared import (
    ALL_FIT,
    LLAMA,
    MISTRAL,
    MISTRAL_CUTS,
    QWEN,
    Compare,
    Compared,
    comparing_in,
    finish,
    ids,
    spec_of,
    trained,
)

from jobs.driver.cell_jobs import find_finished
from jobs.driver.kinds.decision import load_decision
from jobs.driver.launch import take_over
from jobs.driver.locks import locked_cells
from jobs.driver.preparation import prepare_data
from jobs.driver.rounds import Rounds
from jobs.driver.takeover.adoption import Adopter
from jobs.driver.takeover.works import find_learned, find_works, note_finished
from jobs.results.finished import judge_cells
from orchestrator.data.parity import load_selection
from orchestrator.data.prepare import Prepared
from orchestrator.layout import Storage
from orchestrator.planning.plan import load_comparison, load_finetune
from orchestrator.results import CellResult, CellStatus, find_adoption, find_cell_result, save_cell_result, write_json
from orchestrator.spec_files.spec import Comparison
from orchestrator.training.measurement import ItemScores, find_measurement, load_item_scores, save_item_scores


@pytest.fixture
def compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compare:
    return comparing_in(tmp_path, monkeypatch)


def test_a_new_candidate_that_drops_nothing_leaves_the_others_their_results(compare: Compare) -> None:
    first = trained(compare(LLAMA, QWEN))
    grown = compare(LLAMA, QWEN, MISTRAL)
    assert not {*ids(first.plan.cells)} & {*ids(grown.plan.cells)}
    adopted = grown.adopt()
    assert ids(adopted) == ids(grown.cells(LLAMA, QWEN))
    assert grown.said == ["4 of 6 cells are taken over from earlier comparisons, which saw the same data"]
    for old, new in zip(first.plan.cells, grown.cells(LLAMA, QWEN), strict=True):
        source, target = first.folder(old), grown.folder(new)
        for name in ("measurement.json", "items.parquet", "spool/steps.jsonl", "attempts.json"):
            assert (target.path / name).read_bytes() == (source.path / name).read_bytes(), name
        weights = "checkpoints/step-00000003-attempt-001/__0_0.distcp"
        assert (target.path / weights).samefile(source.path / weights)
        found = find_finished(grown.plan, new)
        assert found is not None and found.measurement == find_measurement(source.path)
        assert (found.cell_id, found.seed, found.attempts) == (new.cell_id, new.seed, 1)
        taken = find_adoption(target.path)
        assert taken is not None and taken.adopted_from == old.cell_id and not taken.is_marked
    assert [find_finished(grown.plan, cell) for cell in grown.cells(MISTRAL)] == [None, None]


def test_what_was_taken_over_outlives_its_source_and_is_itself_a_source(compare: Compare) -> None:
    first = trained(compare(LLAMA, QWEN))
    grown = compare(LLAMA, QWEN, MISTRAL)
    grown.adopt()
    finish(grown, grown.cells(MISTRAL))
    for cell in first.plan.cells:
        first.folder(cell).result.unlink()
    without_qwen = compare(MISTRAL, LLAMA)
    assert ids(without_qwen.adopt()) == ids(without_qwen.plan.cells)
    origin = {cell.seed: cell.cell_id for cell in first.cells(LLAMA)}
    for cell in without_qwen.cells(LLAMA):
        taken = find_adoption(without_qwen.plan.cell_folder(cell))
        assert taken is not None and taken.adopted_from == origin[cell.seed]


def test_what_was_taken_over_is_still_asked_tasks_that_its_source_was_not(compare: Compare) -> None:
    first = trained(compare(LLAMA, QWEN))
    grown = compare(LLAMA, QWEN, MISTRAL, recipe__evaluate={"every": 0.25, "tasks": ["arc_easy"]})
    assert grown.adopt() == []
    origin = {(cell.backbone.backbone_id, cell.seed): cell.cell_id for cell in first.plan.cells}
    for cell in grown.cells(LLAMA, QWEN):
        taken, folder = find_adoption(grown.plan.cell_folder(cell)), grown.folder(cell)
        assert taken is not None and taken.adopted_from == origin[cell.backbone.backbone_id, cell.seed]
        assert folder.result.exists() and find_finished(grown.plan, cell) is None


def test_the_same_candidates_with_another_recipe_share_no_work(compare: Compare) -> None:
    first = trained(compare(LLAMA, QWEN))
    works = {cell.work for cell in first.plan.cells}
    assert len(works) == 4
    assert {cell.work for cell in compare(QWEN, MISTRAL, LLAMA, seeds=1).plan.cells} & works
    for changes in ({"recipe__optimizer__learning_rate": 1e-3}, {"placement__workers": 1}, {"length": 120}):
        other = compare(LLAMA, QWEN, MISTRAL, **changes)
        assert not {cell.work for cell in other.plan.cells} & works
        assert other.adopt() == [] and other.said == []


def test_a_candidate_that_drops_examples_has_the_others_train_anew_and_says_how_many(
    compare: Compare,
) -> None:
    trained(compare(LLAMA, QWEN, length=MISTRAL_CUTS))
    grown = compare(LLAMA, QWEN, MISTRAL, length=MISTRAL_CUTS)
    dropped = grown.preparation.facts["dropped"]["too_long"]
    assert 1 < dropped < 100
    assert grown.adopt() == []
    assert grown.said == [
        f"tiny-mistral drops {dropped} training examples that the finished cells of tiny-llama2, tiny-qwen learned "
        "from, so their 4 cells train anew; to keep them, marked, run again with --keep-finished"
    ]


def test_on_request_they_are_kept_and_marked_wherever_they_are_read(compare: Compare) -> None:
    trained(compare(LLAMA, QWEN, length=MISTRAL_CUTS))
    grown = compare(LLAMA, QWEN, MISTRAL, length=MISTRAL_CUTS)
    dropped = grown.preparation.facts["dropped"]["too_long"]
    adopted = grown.adopt(keep_finished=True)
    assert ids(adopted) == ids(grown.cells(LLAMA, QWEN))
    assert grown.said == [
        f"tiny-mistral drops {dropped} training examples that the finished cells of tiny-llama2, tiny-qwen learned "
        "from; their 4 cells are taken over all the same, marked"
    ]
    for result in adopted:
        taken = find_adoption(Path(result.folder))
        assert taken is not None and taken.is_marked and taken.learned_more == dropped
    finish(grown, grown.cells(MISTRAL))
    note = f"tiny-llama2 and tiny-qwen learned from {dropped} training examples more than this comparison keeps"
    assert isinstance(grown.plan.job, Comparison)
    results = [find_finished(grown.plan, cell) for cell in grown.plan.cells]
    notes = judge_cells(grown.plan, grown.plan.job.verdict, [one for one in results if one is not None])["notes"]
    assert [one for one in notes if one.startswith(note)]
    # What they learned from stays known: a comparison that drops nothing takes them over unmarked.
    works = find_works(Storage(grown.plan.storage), grown.cells(LLAMA)[0].work)
    assert len({*works.values()}) == 1 and len(works) == 2


def test_a_candidate_that_leaves_brings_examples_back(compare: Compare) -> None:
    trained(compare(LLAMA, QWEN, MISTRAL, length=MISTRAL_CUTS))
    fewer = compare(LLAMA, QWEN, length=MISTRAL_CUTS)
    assert fewer.adopt() == []
    missed = "training examples that the finished cells of tiny-llama2, tiny-qwen did not learn from are kept now, so"
    assert missed in fewer.said[0]
    adopted = fewer.adopt(keep_finished=True)
    taken = find_adoption(Path(adopted[0].folder))
    assert taken is not None and taken.learned_more == 0 < taken.learned_fewer


def test_held_out_items_that_count_no_more_do_not_matter_and_are_told_of(compare: Compare, tmp_path: Path) -> None:
    def with_a_tag(*backbones: str) -> Compared:
        """One tokenizer leaves `<image>` out of its prompts."""
        file = tmp_path / "validation.jsonl"
        job = spec_of(tmp_path, backbones, ALL_FIT, 2)
        file.write_text(file.read_text() + '{"prompt": "A tag?", "completion": "<image> it is", "group": "g1"}\n')
        plan = load_comparison(job.spec)
        return Compared(plan, prepare_data(plan))

    first = trained(with_a_tag(QWEN))
    grown = with_a_tag(QWEN, MISTRAL)
    assert grown.preparation.facts["scored"] == first.preparation.facts["scored"] - 1
    assert ids(grown.adopt()) == ids(grown.cells(QWEN))
    finish(grown, grown.cells(MISTRAL))
    results = [find_finished(grown.plan, cell) for cell in grown.plan.cells]
    assert isinstance(grown.plan.job, Comparison)
    verdict = judge_cells(grown.plan, grown.plan.job.verdict, [one for one in results if one is not None])
    assert any(
        note.startswith("Finished cells of tiny-qwen were also scored on 1 held-out item that another tokenizer")
        for note in verdict["notes"]
    )
    assert verdict["noise"]["items"] == grown.preparation.facts["scored"]


def test_a_cell_that_was_not_scored_on_all_that_counts_is_not_taken_over(compare: Compare, tmp_path: Path) -> None:
    grown = trained(compare(QWEN, MISTRAL, seeds=1))
    cell = grown.cells(QWEN)[0]
    scores = load_item_scores(grown.plan.cell_folder(cell))
    save_item_scores(grown.plan.cell_folder(cell), ItemScores(*(column[1:] for column in vars(scores).values())))
    alone = compare(QWEN, LLAMA, seeds=1)
    assert alone.adopt() == []
    assert alone.said == [
        f"{cell.cell_id} is finished, but its result cannot be taken over: it was not scored on 1 of the held-out "
        "items that are scored here"
    ]


def test_cells_of_an_earlier_version_are_noted_when_their_comparison_is_launched_again(
    compare: Compare,
) -> None:
    first = compare(LLAMA, QWEN, seeds=1)
    finish(first)  # and noted nothing
    assert compare(LLAMA, QWEN, MISTRAL, seeds=1).adopt() == []
    results = [find_finished(first.plan, cell) for cell in first.plan.cells]
    note_finished(first.plan, first.preparation, [one for one in results if one is not None])
    grown = compare(LLAMA, QWEN, MISTRAL, seeds=1)
    assert ids(grown.adopt()) == ids(grown.cells(LLAMA, QWEN))


def test_a_set_of_examples_is_read_as_it_was_kept_and_not_when_it_is_damaged(
    compare: Compare,
) -> None:
    first = compare(LLAMA, MISTRAL, length=MISTRAL_CUTS, seeds=1)
    first.adopt()
    storage = Storage(first.plan.storage)
    (digest,) = {*find_works(storage, first.plan.cells[0].work).values()}
    kept, _ = load_selection(first.preparation.selection_files[LLAMA])
    learned = find_learned(storage, digest)
    assert learned is not None and learned.kept.tolist() == kept.tolist() and len(kept) < 240
    content = bytearray(storage.learned(digest).read_bytes())
    content[-1] ^= 1
    storage.learned(digest).write_bytes(content)
    assert find_learned(storage, digest) is None


def test_what_another_driver_trains_is_left_to_it_and_what_it_finished_is_found(
    compare: Compare,
) -> None:
    trained(compare(LLAMA, QWEN, seeds=1))
    grown = compare(LLAMA, QWEN, MISTRAL, seeds=1)
    (llama,), (qwen,) = grown.cells(LLAMA), grown.cells(QWEN)
    finish(grown, [qwen])
    with locked_cells([grown.plan.cell_folder(llama)]):
        assert ids(grown.adopt(is_shared=True)) == [qwen.cell_id]
    assert find_adoption(grown.plan.cell_folder(qwen)) is None
    assert find_cell_result(grown.plan.cell_folder(llama)) is None


def test_a_finetune_takes_nothing_over_and_lends_nothing(compare: Compare, tmp_path: Path) -> None:
    trained(compare(LLAMA, QWEN, seeds=1))
    job = spec_of(tmp_path / "tuned", [LLAMA], ALL_FIT, 1, storage=str(tmp_path / "storage"))
    text = job.spec.read_text().replace(f"backbones:\n- {LLAMA}\n", f"backbone: {LLAMA}\n").replace("seeds: 1\n", "")
    job.spec.write_text(text)
    plan = load_finetune(job.spec)
    assert plan.cells[0].work
    tuned = Compared(plan, prepare_data(plan))
    assert tuned.adopt() == []
    assert plan.cells[0].cell_id not in find_works(Storage(plan.storage), plan.cells[0].work)


def test_an_unfinished_cell_is_none_to_take_over(compare: Compare) -> None:
    first = trained(compare(LLAMA, QWEN))
    for cell, status in zip(first.plan.cells, (CellStatus.CANCELLED, CellStatus.FAILED, CellStatus.DIVERGED, None)):
        if status is None:
            first.folder(cell).result.unlink()
        else:
            save_cell_result(first.plan.cell_folder(cell), CellResult(cell.cell_id, LLAMA, cell.seed, status))
    grown = compare(LLAMA, QWEN, MISTRAL)
    assert grown.adopt() == [] and grown.said == []


def test_a_launch_that_certifies_wants_cells_with_a_certificate(compare: Compare) -> None:
    first = trained(compare(LLAMA, QWEN, seeds=1))
    write_json(first.folder(first.cells(QWEN)[0]).certificate, {"backbone_id": QWEN})
    grown = compare(LLAMA, QWEN, MISTRAL, seeds=1)
    assert ids(grown.adopt(certify=True)) == ids(grown.cells(QWEN))
    assert grown.said[0].endswith("it was trained without a certificate, which this launch asks for")
    assert grown.folder(grown.cells(QWEN)[0]).certificate.exists()


def test_a_cell_with_another_tokenizer_by_now_is_not_taken_over(compare: Compare) -> None:
    first = trained(compare(LLAMA, QWEN, seeds=1))
    grown = compare(LLAMA, QWEN, MISTRAL, seeds=1)
    changed = grown.preparation.prepared[LLAMA]
    grown.preparation.prepared[LLAMA] = Prepared(**{**vars(changed), "fingerprint": "f" * 64})
    assert ids(grown.adopt()) == ids(grown.cells(QWEN))
    assert first.plan.cells


def test_a_decision_begins_further_rounds_until_one_has_something_to_train(compare: Compare, tmp_path: Path) -> None:
    trained(compare(LLAMA, QWEN, MISTRAL, seeds=3))
    plan = load_decision(spec_of(tmp_path, [LLAMA, QWEN], ALL_FIT, 2).spec, 4)
    decided, rounds = Compared(plan, prepare_data(plan)), Rounds(plan, {})
    begun: list[list[int]] = []
    adopter = Adopter(plan, decided.preparation, False, False, decided.said.append, False)
    left = take_over(adopter, rounds, rounds.advance(), lambda cells: begun.append([cell.seed for cell in cells]))
    assert [cell.seed for cell in left] == [3, 3] and begun == [[2, 2], [3, 3]]
    assert [result.seed for result in rounds.ordered] == [0, 0, 1, 1, 2, 2]
    assert [said.partition(" taken over")[0] for said in decided.said] == ["4 of 4 cells are", "2 of 2 cells are"]
