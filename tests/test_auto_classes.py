"""Importing hf_warmup registers Pre-LN BERT with the Auto classes, whatever of transformers is imported first."""

from __future__ import annotations

import subprocess
import sys

import pytest


CHECK = "from transformers import AutoConfig; assert AutoConfig.for_model('bert-pre-ln').norm_placement == 'pre'"
FIRST = [
    "from transformers import AutoModelForMaskedLM",
    "from transformers import BertConfig",
    pytest.param("from hf_warmup import BertPreLNConfig", marks=pytest.mark.slow),
    pytest.param("from hf_warmup import WarmupTrainer", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("first", FIRST)
def test_whatever_is_imported_first(first):
    """Or of ours; the other tests import transformers first."""
    subprocess.run([sys.executable, "-c", f"import hf_warmup; {first}; {CHECK}"], check=True, capture_output=True)


def test_other_imports_are_as_they_are_without_us():
    """The hook puts each module's own loader back."""
    code = (
        "import sys, hf_warmup; from transformers import AutoModel; from hf_warmup._auto_classes import NEEDED\n"
        "print({type(sys.modules[name].__spec__.loader).__name__ for name in NEEDED})"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "{'SourceFileLoader'}"
