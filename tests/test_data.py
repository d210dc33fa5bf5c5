"""Data files: what is read, in which order, and one sentence for each that cannot be."""

import csv
import json

import datasets
import pytest

from scripts.text_classification.data import load_files, load_task


# The csv reader of datasets 5.0 leaves its file open.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")


@pytest.fixture
def write(tmp_path):
    """Write files (name -> text, rows or objects) and return their paths."""

    def write(**files):
        paths = {}
        for split, (ending, content) in files.items():
            path = tmp_path / f"{split}.{ending}"
            if isinstance(content, str):
                path.write_text(content, encoding="utf-8")
            elif ending == "csv":
                with path.open("w", newline="", encoding="utf-8") as file:
                    csv.writer(file).writerows(content)
            elif ending == "tsv":
                path.write_text("".join("\t".join(map(str, row)) + "\n" for row in content), encoding="utf-8")
            else:
                objects = [dict(zip(content[0], row, strict=True)) for row in content[1:]]
                text = json.dumps(objects) if ending == "json" else "\n".join(map(json.dumps, objects))
                path.write_text(text, encoding="utf-8")
            paths[split] = str(path)
        return paths

    return write


SENTENCES = ['"quoted" words', "it's", "a, comma", "one \" mark and one '", "'single'", "déjà vu", "5' 6\""]
ROWS = [("sentence", "label"), *((sentence, i % 2) for i, sentence in enumerate(SENTENCES))]


@pytest.mark.parametrize("ending", ["csv", "tsv", "json", "jsonl"])
@pytest.mark.parametrize("task_name", [None, "sst2"])
def test_sentences_are_read_to_the_letter(ending, task_name, write):
    data, columns = load_files(write(train=(ending, ROWS), validation=(ending, ROWS[:4])), task_name)
    assert columns == ["sentence"]
    assert data["train"]["sentence"][:] == SENTENCES
    assert data["train"]["label"][:] == [i % 2 for i in range(len(SENTENCES))]
    assert data["validation"].num_rows == 3
    assert data["train"].features["label"].names == ["0", "1"]


@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_words_that_pandas_takes_for_missing(ending, write):
    """A film review may read "null" or "NA"."""
    words = ["null", "NA", "None", "nan", "n/a", "good"]
    rows = [("sentence", "label"), *((word, i % 2) for i, word in enumerate(words))]
    data, _ = load_files(write(train=(ending, rows)), "sst2")
    assert data["train"]["sentence"][:] == words


def test_rte_has_words_for_labels(write):
    """GLUE's own file: an index first, the two sentences, and the label's name."""
    header = ("index", "sentence1", "sentence2", "label")
    train = [header, (0, "a", "b", "not_entailment"), (1, "c", "d", "entailment"), (2, "e", "f", "entailment")]
    dev = [header, (0, "g", "h", "not_entailment")]
    test = [header[:3], (0, "i", "j")]
    data, columns = load_files(write(train=("tsv", train), validation=("tsv", dev), test=("tsv", test)), "rte")
    assert columns == ["sentence1", "sentence2"]
    assert {split: rows["label"][:] for split, rows in data.items()} == {
        "train": [1, 0, 0],
        "validation": [1],
        "test": [0],
    }
    assert data["test"].column_names == ["sentence1", "sentence2", "label"]
    for rows in data.values():
        assert rows.features["label"].names == ["entailment", "not_entailment"]


@pytest.mark.parametrize(
    ("task_name", "columns"),
    [  # transformers' examples/pytorch/text-classification/run_glue.py, `task_to_keys`
        ("cola", ["sentence"]),
        ("mnli", ["premise", "hypothesis"]),
        ("mrpc", ["sentence1", "sentence2"]),
        ("qnli", ["question", "sentence"]),
        ("qqp", ["question1", "question2"]),
        ("rte", ["sentence1", "sentence2"]),
        ("sst2", ["sentence"]),
        ("wnli", ["sentence1", "sentence2"]),
    ],
)
def test_columns_of_a_task(task_name, columns, write, monkeypatch):
    """The tokenizer's order, not the file's; from files and from the hub."""
    header = ["label", *reversed(columns), "other"]
    files = write(train=("csv", [header, [1, *reversed(columns), "x"], [0, *reversed(columns), "y"]]))
    data, found = load_files(files, task_name)
    assert found == columns
    assert data["train"].column_names == [*columns, "label"]
    assert [data["train"][0][column] for column in columns] == columns

    names = ["train", "validation", "test"]
    if task_name == "mnli":
        names = ["train", "validation_matched", "validation_mismatched", "test_matched", "test_mismatched"]
    tables = [{column: [i if column == "label" else column] for column in header} for i in range(len(names))]
    hub = datasets.DatasetDict(zip(names, map(datasets.Dataset.from_dict, tables), strict=True))
    monkeypatch.setattr(datasets, "load_dataset", lambda *args: {("nyu-mll/glue", task_name): hub}[args])
    data, found = load_task(task_name)
    assert found == columns
    assert {tuple(split.column_names) for split in data.values()} == {(*columns, "label")}
    numbers = {"train": 0, "validation": 1, "test": 3 if task_name == "mnli" else 2}  # MNLI's are the matched ones
    assert {split: data[split]["label"][0] for split in numbers} == numbers


def test_columns_without_a_task_are_those_of_text(write):
    files = write(train=("csv", [("id", "b", "label", "a", "c"), (7, "x", "yes", "y", "z"), (8, "x", "no", "y", "z")]))
    data, columns = load_files(files)
    assert columns == ["b", "a"]
    assert data["train"][0] == {"b": "x", "a": "y", "label": 1}


def test_numbers_as_labels_keep_their_order(write):
    data, _ = load_files(write(train=("csv", [("text", "label"), *(("x", i) for i in range(12))])))
    assert data["train"]["label"][:] == list(range(12))


def test_whole_numbers_written_as_fractions_are_classes(write):
    data, _ = load_files(write(train=("csv", "text,label\na,0.0\nb,2.0\n")))
    assert data["train"]["label"][:] == [0, 1]


GOOD = ("csv", "sentence,label\na,0\nb,1\n")


@pytest.mark.parametrize(
    ("files", "task_name", "sentence"),
    [
        ({"train": ("csv", "")}, None, r"train_file='.*train\.csv' .*empty"),
        ({"train": ("csv", "sentence,label\n")}, None, r"train_file='.*train\.csv' .*example"),
        ({"train": ("tsv", "sentence\tlabel\n")}, "sst2", r"train_file='.*train\.tsv' .*example"),
        ({"train": ("json", "[]")}, None, r"train_file='.*train\.json' .*example"),
        ({"train": ("json", '{"sentence": ')}, None, r"train_file='.*train\.json'"),
        ({"train": ("csv", "number,label\n1,0\n")}, None, r"train_file='.*' .*columns number, label.* text and label"),
        ({"train": ("csv", "sentence\na\n")}, None, r"train_file='.*' .*columns sentence.* sentence and label"),
        ({"train": ("csv", "sentence,label\na,0\nb,\n")}, None, r"train_file='.*label"),
        ({"train": GOOD}, "mrpc", r"train_file='.*sentence, label.*sentence1, sentence2 and label"),
        ({"train": GOOD, "validation": ("csv", "text,label\na,0\n")}, None, r"validation_file='.*text, label"),
        ({"train": GOOD, "validation": ("csv", "sentence\na\n")}, None, r"validation_file='.*columns sentence"),
        (
            {"train": GOOD, "validation": ("csv", "sentence,label\na,2\n")},
            None,
            r"validation_file='.*label '2'.*'0', '1'",
        ),
        ({"train": GOOD, "test": ("csv", "sentence,label\na,-1\n")}, None, r"test_file='.*label '-1'"),
        ({"train": ("csv", "sentence,label\na,0.0\nb,2.5\n")}, None, r"train_file='.*label 2\.5: expected classes"),
        ({"train": GOOD, "test": ("csv", "sentence,label\na,0.5\n")}, None, r"test_file='.*label 0\.5: expected clas"),
        ({"train": ("txt", "a\n")}, None, r"train_file.*'\.txt'.*\.csv, \.json, \.jsonl, \.tsv"),
        ({"train": GOOD}, "sst3", r"task_name='sst3'.*Did you mean 'sst2'"),
    ],
)
def test_one_sentence_for_a_bad_input(files, task_name, sentence, write):
    with pytest.raises(ValueError, match=sentence) as caught:
        load_files(write(**files), task_name)
    assert len(str(caught.value).splitlines()) == 1


def test_missing_file_and_unknown_task(write, tmp_path):
    with pytest.raises(ValueError, match=r"validation_file='.*nowhere\.csv'.*no such file"):
        load_files({**write(train=GOOD), "validation": str(tmp_path / "nowhere.csv")})
    with pytest.raises(ValueError, match=r"task_name='mrcp'.*Did you mean 'mrpc'.*cola, mnli, mrpc"):
        load_task("mrcp")
