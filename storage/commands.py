"""The verbs of this package, as the front door calls them: what they print and their exit codes."""

import json as json_format
from dataclasses import asdict

from storage.info import describe, summary


def info(data: str, /, *, json: bool = False) -> int:
    """Say what a data set is, from its metadata alone.

    Args:
        data: Folder of the data set.
        json: Print it as JSON.
    """
    facts = describe(data)
    print(json_format.dumps(asdict(facts)) if json else summary(facts))
    return 0 if facts.complete else 1
