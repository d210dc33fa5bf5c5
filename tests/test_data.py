"""Reading of data files: what is read, which columns and classes are chosen, and errors for unusable files."""

import csv
import json

import datasets
import pytest

from scripts.text_classification.data import TASK_COLUMNS, class_name, load_files, load_task


# The csv reader of datasets 5.0 leaves its file open.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")


@pytest.fixture
def write(tmp_path):
    """Write files (split -> (ending, text or rows with a header)) and return their paths."""

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


SENTENCES = ['"quoted" words', "it's", "a, comma", "one \" mark and one '", "null", "NA", "déjà vu", "07", "5' 6\""]
ROWS = [("sentence", "label"), *((sentence, i % 2) for i, sentence in enumerate(SENTENCES))]


@pytest.mark.parametrize("ending", ["csv", "tsv", "json", "jsonl"])
def test_load_files_keeps_sentences_to_the_letter(ending, write):
    data, columns = load_files(write(train=(ending, ROWS), validation=(ending, ROWS[:4])))
    assert columns == ["sentence"]
    assert data["train"]["sentence"][:] == SENTENCES
    assert data["train"]["label"][:] == [i % 2 for i in range(len(SENTENCES))]
    assert data["validation"].num_rows == 3
    assert data["train"].features["label"].names == ["0", "1"]


def test_load_files_reads_the_files_of_rte(write):
    """GLUE's own format: an index first, two sentences, and the name of the label; no label in the test file."""
    header = ("index", "sentence1", "sentence2", "label")
    train = [header, (0, "a", "b", "not_entailment"), (1, "c", "d", "entailment"), (2, "e", "f", "entailment")]
    dev, test = [header, (0, "g", "h", "not_entailment")], [header[:3], (0, "i", "j")]
    data, columns = load_files(write(train=("tsv", train), validation=("tsv", dev), test=("tsv", test)), "rte")
    assert columns == ["sentence1", "sentence2"]
    labels = {split: rows["label"][:] for split, rows in data.items()}
    assert labels == {"train": [1, 0, 0], "validation": [1], "test": [0]}
    for rows in data.values():
        assert rows.column_names == ["sentence1", "sentence2", "label"]
        assert rows.features["label"].names == ["entailment", "not_entailment"]


def test_task_columns_match_run_glue():
    """`task_to_keys` in transformers' examples/pytorch/text-classification/run_glue.py."""
    assert TASK_COLUMNS == {
        "cola": ("sentence",),
        "mnli": ("premise", "hypothesis"),
        "mrpc": ("sentence1", "sentence2"),
        "qnli": ("question", "sentence"),
        "qqp": ("question1", "question2"),
        "rte": ("sentence1", "sentence2"),
        "sst2": ("sentence",),
        "wnli": ("sentence1", "sentence2"),
    }


@pytest.mark.parametrize("task_name", ["mnli", "qnli"])
def test_load_task_selects_columns_and_matched_splits(task_name, monkeypatch):
    columns = list(TASK_COLUMNS[task_name])
    names = ["train", "validation", "test"]
    if task_name == "mnli":
        names = ["train", "validation_matched", "validation_mismatched", "test_matched", "test_mismatched"]
    header = ["label", *reversed(columns), "other"]
    tables = [{column: [i if column == "label" else column] for column in header} for i in range(len(names))]
    hub = datasets.DatasetDict(zip(names, map(datasets.Dataset.from_dict, tables), strict=True))
    monkeypatch.setattr(datasets, "load_dataset", lambda *args: {("nyu-mll/glue", task_name): hub}[args])
    data, found = load_task(task_name)
    assert found == columns
    assert {tuple(split.column_names) for split in data.values()} == {(*columns, "label")}
    expected = {"train": 0, "validation": 1, "test": 3 if task_name == "mnli" else 2}
    assert {split: data[split]["label"][0] for split in expected} == expected


@pytest.mark.parametrize(
    ("content", "text_columns", "columns", "first", "names"),
    [
        ("id,text,label\n7,a,1\n8,b,0\n", None, ["text"], ("a", 1), ["0", "1"]),
        ("id,review,label\n7,a,1\n8,b,0\n", None, ["review"], ("a", 1), ["0", "1"]),  # the only column of text
        ("text,label,label_text\na,1,pos\nb,0,neg\n", None, ["text"], ("a", 1), ["0", "1"]),  # SetFit's leaked label
        ("review,label,label_text\na,1,pos\nb,0,neg\n", None, ["review"], ("a", 1), ["0", "1"]),
        ("a,b,label\nx,y,1\nz,w,0\n", ["b", "a"], ["b", "a"], ("y", 1), ["0", "1"]),
        ("sentence,label\n7,1\n8,0\n", None, ["sentence"], ("7", 1), ["0", "1"]),  # text of digits
        ("sentence,label\na,pos\nb,neg\nc,pos \nd,pos\u200b\n", None, ["sentence"], ("a", 1), ["neg", "pos"]),
        ("text,label\na,2.0\nb,0\nc,10\n", None, ["text"], ("a", 1), ["0", "2", "10"]),
        ("sentence,label\n0,a,1\n1,b,0\n2,c,1\n", None, ["sentence"], ("a", 1), ["0", "1"]),  # row numbers, no header
        (f"sentence,label\na,{10**20 + 1}\nb,{10**20}\n", None, ["sentence"], ("a", 1), [f"{10**20}", f"{10**20 + 1}"]),
        (f"id,sentence,label\n{10**20},a,1\n{10**21},b,0\n", None, ["sentence"], ("a", 1), ["0", "1"]),
    ],
)
def test_load_files_chooses_columns_and_classes(content, text_columns, columns, first, names, write):
    data, found = load_files(write(train=("csv", content)), text_columns=text_columns)
    assert found == columns
    assert (data["train"][columns[0]][0], data["train"]["label"][0]) == first
    assert data["train"].features["label"].names == names


@pytest.mark.parametrize("extra", [{"meta": {"id": 1}}, {"tokens": ["a", "b"]}, {"note": None}])
def test_load_files_ignores_json_columns_that_are_not_text(extra, write):
    rows = "".join(json.dumps({"sentence": text, "label": i, **extra}) + "\n" for i, text in enumerate("ab"))
    data, columns = load_files(write(train=("jsonl", rows)))
    assert (columns, data["train"][1]) == (["sentence"], {"sentence": "b", "label": 1})


def test_class_name_removes_invisible_differences_only():
    assert [class_name(each) for each in (1, 1.0, True, "1.50", "Pos", "po\u00a0\u00a0s ", "a\0")] == [
        "1", "1", "True", "1.50", "Pos", "po s", "a",
    ]  # fmt: skip


GOOD = ("csv", "sentence,label\na,0\nb,1\n")


@pytest.mark.parametrize(
    ("files", "task_name", "message"),
    [
        ({"train": ("csv", "")}, None, r"train_file='.*train\.csv' cannot be read.*No columns"),
        ({"train": ("tsv", "sentence\tlabel\n")}, "sst2", r"train_file='.*train\.tsv' .*example"),
        ({"train": ("json", "[]")}, None, r"train_file='.*train\.json' .*example"),
        ({"train": ("json", '{"sentence": ')}, None, r"train_file='.*train\.json' cannot be read"),
        ({"train": ("txt", "a\n")}, None, r"train_file='.*': expected a file name that ends with \.csv, \.tsv"),
        # columns
        ({"train": ("csv", "number,label\n1,0\n")}, None, r"columns 'number', 'label' in its first line: expected"),
        ({"train": ("csv", "a,b,label\nx,y,0\n")}, None, r"columns 'a', 'b', 'label'.*`text_column_names`"),
        ({"train": ("csv", "sentence, label\na,0\n")}, None, r"columns 'sentence', ' label'"),
        ({"train": ("csv", "sentence;label\na;0\n")}, None, r"columns 'sentence;label'.*separated by commas"),
        ({"train": ("csv", "good film,1\nbad film,0\n")}, None, r"columns 'good film', '1' in its first line"),
        ({"train": GOOD}, "mrpc", r"columns 'sentence', 'label': expected 'sentence1', 'sentence2', 'label'"),
        ({"train": GOOD, "validation": ("csv", "text,label\na,0\n")}, None, r"validation_file='.*'text', 'label'"),
        ({"train": GOOD, "validation": ("csv", "sentence\na\n")}, None, r"validation_file='.*columns 'sentence'"),
        ({"train": ("json", '{"version": 1, "data": [{"sentence": "a"}]}')}, None, r"columns 'version', 'data'"),
        # rows with more fields than the header, which pandas shifts
        ({"train": ("csv", "label,sentence\n1,a,\n0,b,\n1,c,\n")}, None, r"has rows of 3 fields, but its header has 2"),
        ({"train": ("csv", "sentence,label\na, b,1\nc, d,0\n")}, None, r"has rows of 3 fields, but its header has 2"),
        ({"train": ("csv", "sentence,label\na,b,c,1\nd,e,f,0\n")}, None, r"has rows of 4 fields, but its header has 2"),
        ({"train": ("csv", "sentence,label\na,1\nb, c,0\n")}, None, r"cannot be read.*line 3, saw 3"),
        # rows
        ({"train": ("csv", "sentence,label\na,0\n ,1\n")}, None, r"example 2 has no text in column 'sentence'"),
        ({"train": ("csv", "sentence,label\na,0\n\u200b\u200d,1\n")}, None, r"example 2 has no text in column"),
        ({"train": ("jsonl", '{"sentence": "a", "label": 1}\n{"label": 0}\n')}, None, r"example 2 has no text"),
        ({"train": ("json", '{"sentence": ["a", "b"], "label": [1, 0]}')}, None, r"example 1 has no text"),
        # labels
        ({"train": ("csv", "sentence,label\na,0\nb,\n")}, None, r"example 2 has the label ''"),
        ({"train": ("csv", "sentence,label\na,0\nb,\u200b\n")}, None, r"example 2 has the label '\\u200b'"),
        ({"train": ("csv", "sentence,label\na,Pos\nb,pos\n")}, None, r"labels that differ only in case: Pos, pos"),
        ({"train": ("jsonl", f'{{"text": "a", "label": {10**20}}}\n')}, None, r"the label 1e\+20: expected classes"),
        ({"train": ("jsonl", '{"sentence": "a", "label": [1]}\n')}, None, r"example 1 has the label \[1\]"),
        ({"train": ("csv", "sentence,label\na,1\nb,1\n")}, None, r"only the label '1': expected at least two classes"),
        ({"train": ("csv", "sentence,label\na,0.0\nb,2.5\n")}, None, r"the label 2\.5: expected classes, not a scale"),
        ({"train": ("jsonl", '{"text": "a", "label": "0.4"}\n')}, None, r"the label 0\.4: expected classes"),
        ({"train": ("tsv", "text\tlabel\na\t1,5\n")}, None, r"the label 1,5: expected classes, not a scale"),
        ({"train": ("csv", "kind,label\nx,1\ny,0\nx,1\n")}, None, r"column 'kind' has one value for each label"),
        ({"train": GOOD, "validation": ("csv", "sentence,label\na,2\n")}, None, r"validation_file='.*'2'.*'0', '1'"),
        ({"train": GOOD, "test": ("csv", "sentence,label\na,-1\n")}, None, r"test_file='.*label '-1'"),
    ],
)  # fmt: skip
def test_load_files_raises_one_clear_error(files, task_name, message, write):
    with pytest.raises(ValueError, match=message) as caught:
        load_files(write(**files), task_name)
    assert len(str(caught.value).splitlines()) == 1


def test_load_files_raises_for_missing_files_and_other_encodings(tmp_path):
    with pytest.raises(ValueError, match=r"train_file='.*nowhere\.csv': there is no such file"):
        load_files({"train": str(tmp_path / "nowhere.csv")})
    (tmp_path / "latin.csv").write_bytes("sentence,label\ndéjà vu,1\nb,0\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.csv' cannot be read as csv in UTF-8"):
        load_files({"train": str(tmp_path / "latin.csv")})
