"""Objects of ours in the model_options, which other nodes may copy deeply."""

from __future__ import annotations


class Uncopied:
    """Is its own deep copy.

    A node that wants a call with other options may copy those of a step deeply. A method of ours in them would bring a
    copy of all that it knows along, the network's weights and the step's tensors, and what the call leaves would be
    left in the copy.
    """

    def __deepcopy__(self, memo: dict) -> Uncopied:
        return self
