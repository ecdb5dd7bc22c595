"""What vSphere asks about a VM that stands still until somebody answers, in words.

Facts: vSphere Web Services API, VirtualMachineQuestionInfo. Labels of answers may mark a letter ("I _Moved It").
"""

from __future__ import annotations

from typing import Any, Final

from portlayer.drivers.vsphere.event_source import MAX_MESSAGE, MAX_NAME, plain

# Property of a VM; unset when nothing is asked.
QUESTION: Final = "runtime.question"


def words(question: Any) -> str:
    """A question and the answers that there are, on one line."""
    choices = getattr(question.choice, "choiceInfo", None) or ()
    labels = [plain(str(one.label).replace("_", ""), MAX_NAME) for one in choices]
    text = plain(question.text, MAX_MESSAGE)
    return f"{text} ({' / '.join(labels)})" if labels else text
