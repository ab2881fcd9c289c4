"""What a user would call without Keel: Presidio and Detoxify's BERT-base, one by one, in this process.

Run as a program: prints the CPU milliseconds of one prompt and one reply as JSON. The BERT has Detoxify's
architecture with random weights (its weights are a download; arithmetic costs the same), and Presidio runs
with a blank spaCy pipeline, which only makes it cheaper than a user's.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from typing import Any

from loadtests.bench.stub import words


def _blank_engine() -> Any:
    import spacy
    from presidio_analyzer.nlp_engine import SpacyNlpEngine

    engine: Any = SpacyNlpEngine()
    engine.nlp = {"en": spacy.blank("en")}
    return engine


def main() -> None:
    """Median CPU time over the repeats given as the first argument."""
    import torch
    from presidio_analyzer import AnalyzerEngine
    from transformers import AutoConfig, AutoModelForSequenceClassification

    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = AutoConfig.for_model("bert", num_labels=6)
    models: Any = AutoModelForSequenceClassification
    bert = models.from_config(config).eval()
    analyzer = AnalyzerEngine(nlp_engine=_blank_engine(), supported_languages=["en"])
    prompt, reply = words(100), words(64)
    spent = []
    for _ in range(int(sys.argv[1]) + 1):
        start = time.process_time()
        for text, tokens in ((prompt, 130), (reply, 84)):
            analyzer.analyze(text, language="en")
            with torch.inference_mode():
                bert(torch.randint(1000, 20000, (1, tokens)))
        spent.append(time.process_time() - start)
    print(json.dumps({"cpu_ms": statistics.median(spent[1:]) * 1e3}))


if __name__ == "__main__":
    main()
