"""Ready definitions and tasks of your own: what is read from small data sets in the published schemas."""

from __future__ import annotations

import itertools
import json
import pickle
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from public_data import PUBLIC, picture, struct, write, write_frames

from vtc.eval.tasks.metrics import list_metrics, metric
from vtc.eval.tasks.questions import Question
from vtc.eval.tasks.reading.definition import definition, list_definitions
from vtc.eval.tasks.reading.load import load_tasks
from vtc.eval.tasks.reading.read_benchmarks import load_benchmarks

OWN = """
task: counting
metric: numeric
files: [questions.jsonl]
image: image
prompt: "{{ question }}\\nAnswer with a number."
answer: answer
"""


def own(folder: Path, yaml: str = OWN, rows: list[dict] | None = None) -> Path:
    """A task of one's own: pictures as files, questions as jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pictures").mkdir(exist_ok=True)
    for i in range(3):
        (folder / "pictures" / f"{i}.png").write_bytes(picture(i))
    rows = rows or [{"question": f"How many {i}?", "answer": i, "image": f"pictures/{i % 3}.png"} for i in range(4)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "task.yaml").write_text(yaml)
    return folder


def test_all_asked_benchmarks_have_a_definition():
    assert set(list_definitions()) == {*PUBLIC, "seed_image"}
    for name in list_definitions():
        d = definition(name)
        assert d.task == name
        assert d.metric in list_metrics()
        assert d.hub
        assert d.title


@pytest.mark.parametrize("name", sorted(set(PUBLIC) - {"videomme", "mvbench"}))
def test_published_schemas(name: str, tmp_path: Path):
    """Every row becomes a question with a prompt, an answer that its metric scores as right, and a picture."""
    tasks = load_benchmarks([name], write(tmp_path, name))
    rows = PUBLIC[name].rows
    assert tasks.counts == {name: len(rows)}
    assert tasks.skipped == ()
    for q, row in zip(tasks.questions, rows, strict=True):
        assert str(row["question"]).strip().lower().removesuffix(" please answer yes or no.") in q.question.lower()
        assert metric(q.metric).score(q, q.answer) > 0.5
        assert tasks.visuals(q)[0].size == (24, 16)
    assert tasks.info[name].max_new_tokens
    assert len({q.question_id for q in tasks.questions}) == len(rows)


def test_pictures_are_those_of_their_rows(tmp_path: Path):
    tasks = load_benchmarks(["pope"], write(tmp_path, "pope"))
    for q, row in zip(tasks.questions, PUBLIC["pope"].rows, strict=True):
        assert tasks.images[q.image_id] == row["image"]["bytes"]
    assert len(tasks.groups()) == 2  # three questions about each picture
    assert len(tasks.images) == 2


def test_pictures_of_many_row_groups_in_any_order(tmp_path: Path):
    rows = [{**PUBLIC["ai2d"].rows[0], "image": struct(i)} for i in range(40)]
    write(tmp_path, "ai2d", {"data/test-00000-of-00001.parquet": rows})
    tasks = load_benchmarks(["ai2d"], tmp_path)
    for i in (39, 0, 20, 21, 2, 39, 11, 30, 0, 38):
        assert tasks.images[tasks.questions[i].image_id] == picture(i)


def test_answers_references_and_options(tmp_path: Path):
    def first(name: str, i: int = 0):
        return load_benchmarks([name], write(tmp_path, name)).questions[i]

    assert first("vqav2").references == ("down", "at table", "table") * 3 + ("down",)
    assert first("textvqa").answer == "nokia"
    assert first("scienceqa_img", 1).answer == "B"
    assert first("scienceqa_img").question.startswith("Context: Look closely.\nWhich is the best?\nA. copper\nB. wood")
    assert first("mmbench_en", 4).options == ("dog", "cat")  # "nan" in C and D
    assert first("mmbench_cn").options == ("狗", "猫", "车", "帽子")
    assert first("ocrbench", 1).references == ("ten", "10")
    assert first("gqa").image_id == first("gqa", 2).image_id == "gqa/n0"


def test_groups_come_whole_into_a_choice(tmp_path: Path):
    tasks = load_benchmarks(["mmbench_en"], write(tmp_path, "mmbench_en"))  # groups of 4 and of 2
    assert [len(tasks.subset(None, limit).questions) for limit in (1, 2, 3, 4, 5, 6)] in (
        [2, 2, 2, 2, 2, 6], [4, 4, 4, 4, 4, 6],
    )  # fmt: skip
    sizes = [3, 1, 2, 4, 1, 2, 3, 1, 4, 2]
    many = [Question(f"{g}-{k}", "t", f"i{g}", "?", "a", group=f"g{g}") for g, n in enumerate(sizes) for k in range(n)]
    made = replace(tasks, tasks=("t",), questions=tuple(many))
    nested = [{q.question_id for q in made.subset(None, n).questions} for n in range(1, sum(sizes) + 1)]
    assert all(small <= large for small, large in itertools.pairwise(nested))
    assert len(nested[-1]) == sum(sizes)
    mme = load_benchmarks(["mme"], write(tmp_path, "mme"))
    for limit in (1, 3, 4, 7):
        chosen = mme.subset(None, limit).questions
        assert len(chosen) == max(2, limit // 2 * 2)
        assert all(sum(q.group == p.group for p in chosen) == 2 for q in chosen)
    ids = [{q.question_id for q in mme.subset(None, n).questions} for n in range(1, 9)]
    assert all(small <= large for small, large in itertools.pairwise(ids))


def test_seed_has_images_and_frames(tmp_path: Path):
    tasks = load_benchmarks(["seed"], write(tmp_path, "seed"))
    assert [q.kind for q in tasks.questions] == ["image", "image", "frames"]
    video = tasks.questions[2]
    assert len(video.media) == 12
    assert len(tasks.visuals(video)) == 8  # what the definition says
    shown = [p.getpixel((0, 0))[0] for p in tasks.visuals(video, 3)]
    assert shown == [(20 + k) * 37 % 256 for k in (0, 5, 11)]
    alone = load_benchmarks(["seed_image"], tmp_path)
    assert [q.category for q in alone.questions] == ["5", "5"]


def test_mvbench_finds_each_layout_and_cuts(tmp_path: Path):
    write(tmp_path, "mvbench")
    root = tmp_path / "MVBench"
    write_frames(root / "video" / "star/Charades_v1_480/ZS9XR.mp4", 12)  # whole: seconds 1 to 2, at 3 frames a second
    write_frames(root / "data0613" / "clevrer/video_validation/video_1.mp4", 4)
    tasks = load_benchmarks(["mvbench"], tmp_path)
    assert [(q.answer, q.category, q.options) for q in tasks.questions] == [
        ("B", "action_sequence", ("Ate it.", "Tidied up.", "Sat.")), ("A", "moving_count", ("3", "2", "4")),
    ]  # fmt: skip
    frames = [[p.getpixel((0, 0))[0] for p in tasks.visuals(q)] for q in tasks.questions]
    assert frames == [[3, 4, 5, 6], [0, 1, 2, 3]]


def test_videomme_frames(tmp_path: Path):
    write(tmp_path, "videomme")
    write_frames(tmp_path / "Video-MME" / "data" / "fFjv93ACGo8", 100)
    write_frames(tmp_path / "Video-MME" / "data" / "N1cdUjctpG8", 5)
    tasks = load_benchmarks(["videomme"], tmp_path)
    first, second = tasks.questions
    assert (first.kind, first.answer, first.category) == ("video", "C", "short")
    shown = [p.getpixel((0, 0))[0] for p in tasks.visuals(first)]
    assert (len(shown), shown[0], shown[-1]) == (32, 0, 99)
    assert [p.getpixel((0, 0))[0] for p in tasks.visuals(second)] == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match=r"is a video, not an image"):
        tasks.image(first.image_id)


@pytest.mark.parametrize("layout", ["POPE/data", "pope", "lmms-lab-encoder/POPE/data", "."])
def test_where_a_local_copy_may_lie(layout: str, tmp_path: Path):
    folder = tmp_path / layout
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(PUBLIC["pope"].rows), folder / "test-00000-of-00001.parquet")
    assert load_benchmarks(["pope"], tmp_path).counts == {"pope": 6}


def test_several_shards_keep_their_order(tmp_path: Path):
    rows = PUBLIC["mme"].rows
    write(tmp_path, "mme", {"data/test-00000-of-00002.parquet": rows[:4], "data/test-00001-of-00002.parquet": rows[4:]})
    whole = load_benchmarks(["mme"], write(tmp_path / "one", "mme"))
    both = load_benchmarks(["mme"], tmp_path)
    assert [q.question_id for q in both.questions] == [q.question_id for q in whole.questions]
    assert "test-00001-of-00002.parquet row 1" in both.images.place("mme/OCR/3.png")


def test_several_benchmarks_together(tmp_path: Path):
    write(write(tmp_path, "pope"), "mme")
    tasks = load_benchmarks(["mme", "pope"], tmp_path)
    assert tasks.counts == {"mme": 8, "pope": 6}
    assert tasks.subset(["pope"], 3).counts == {"pope": 3}
    assert {tasks.image(q.image_id).size for q in tasks.questions} == {(24, 16)}
    assert tasks.fingerprint != load_benchmarks(["pope"], tmp_path).fingerprint


def test_a_part_travels_to_another_process(tmp_path: Path):
    tasks = load_benchmarks(["pope"], write(tmp_path, "pope"))
    part = pickle.loads(pickle.dumps(tasks.part(tasks.questions[:3])))
    assert len(part.images) == 1
    assert part.image(part.questions[0].image_id).size == (24, 16)


def test_the_fingerprint_follows_content_and_definition(tmp_path: Path):
    first = load_tasks(own(tmp_path / "a")).fingerprint
    assert first == load_tasks(own(tmp_path / "b")).fingerprint
    assert first != load_tasks(own(tmp_path / "c", OWN.replace("a number", "digits"))).fingerprint
    (tmp_path / "b" / "pictures" / "0.png").write_bytes(picture(9))
    assert first != load_tasks(tmp_path / "b").fingerprint


def test_a_task_of_your_own(tmp_path: Path):
    tasks = load_tasks(own(tmp_path / "mine"))
    assert (tasks.name, tasks.tasks, tasks.counts) == ("mine", ("counting",), {"counting": 4})
    q = tasks.questions[1]
    assert (q.question_id, q.question, q.answer) == ("counting/2", "How many 1?\nAnswer with a number.", "1")
    assert tasks.image(q.image_id).getpixel((0, 0)) == (37, 91, 13)
    assert q.image_id != tasks.questions[0].image_id
    assert tasks.questions[0].image_id == tasks.questions[3].image_id  # one file, named by its content
    assert metric(q.metric).score(q, "There is one.") == 1


def test_two_tasks_in_a_folder_and_several_images(tmp_path: Path):
    rows = [
        {"question": "Same?", "answer": "yes", "image": ["pictures/0.png", "pictures/1.png"], "type": "pair"},
        {"question": "Red?", "answer": "no", "image": "pictures/2.png", "type": "single"},
    ]
    yaml = "task: pairs\nmetric: pope\nfiles: questions.jsonl\nimage: image\nprompt: question\nanswer: answer\n"
    folder = own(tmp_path / "mine", yaml + "where: \"{{ type == 'pair' }}\"\n", rows)
    other = yaml.replace("pairs", "singles") + "where: \"{{ type == 'single' }}\"\n"
    (folder / "other.yaml").write_text(other)
    tasks = load_tasks(folder)
    assert tasks.counts == {"singles": 1, "pairs": 1}
    pair = next(q for q in tasks.questions if q.task == "pairs")
    assert [p.getpixel((0, 0))[0] for p in tasks.visuals(pair)] == [0, 37]
    assert tasks.subset(["pairs"]).part([pair]).visuals(pair)[1].size == (24, 16)
    assert load_benchmarks([str(folder / "other.yaml")]).counts == {"singles": 1}


def test_parquet_with_file_names_and_a_table_of_images(tmp_path: Path):
    folder = own(tmp_path / "mine", OWN.replace("questions.jsonl", "q.parquet"))
    rows = [{"question": "?", "answer": "1", "image": {"bytes": None, "path": "pictures/1.png"}}]
    pq.write_table(pa.Table.from_pylist(rows), folder / "q.parquet")
    tasks = load_tasks(folder)
    assert tasks.image(tasks.questions[0].image_id).getpixel((0, 0))[0] == 37
    yaml = OWN.replace("image: image", "image_id: picture\nimages: {files: i.parquet, key: name, image: data}")
    (folder / "task.yaml").write_text(yaml)
    (folder / "questions.jsonl").write_text('{"question": "?", "answer": 2, "picture": "p"}\n')
    pq.write_table(pa.Table.from_pylist([{"name": "p", "data": struct(2)}]), folder / "i.parquet")
    tasks = load_tasks(folder)
    assert tasks.image("counting/p").getpixel((0, 0))[0] == 74


def test_the_hub_is_read_through_datasets(tmp_path: Path):
    """The library takes a folder for a data set's id, so this is the way of the hub, without a network."""
    pytest.importorskip("datasets", reason="the extra hub is not installed: pip install 'vtc[hub]'")
    for name in ("pope", "seed"):
        local = load_benchmarks([name], write(tmp_path / "data", name))
        text = (definition(name).path).read_text().replace(f"lmms-lab-encoder/{PUBLIC[name].folder}", "HUB")
        yaml = tmp_path / f"{name}.yaml"
        yaml.write_text(text.replace("HUB", str(tmp_path / "data" / PUBLIC[name].folder)))
        hub = load_benchmarks([str(yaml)])
        assert hub.questions == local.questions
        for q in hub.questions:
            assert [p.tobytes() for p in hub.visuals(q)] == [p.tobytes() for p in local.visuals(q)]
    assert "row 1" in hub.images.place("seed/image/d0#0")
