"""The operations that can be evaluated, by Apple's names.

Each follows coremltools' definition of its name.

| file | operations | Apple's definitions |
|---|---|---|
| ``elementwise`` | arithmetic, activations, comparisons, reductions, cast, select | iOS 15 and 17 |
| ``movement`` | reshape, transpose, slices, gathers, joins, padding, nearest resizing | iOS 15 to 18 |
| ``layers`` | convolutions, products, normalisations, attention, pooling | iOS 15, 17 and 18 |
| ``stored`` | weights in fewer bits | iOS 16 and 18 |

A further one is a function here, under its name; what is not in the table is refused by name.
"""

from device_profiler.evaluator.operations import elementwise, layers, movement, stored
from device_profiler.evaluator.operations.arguments import OPERATIONS, Arguments, Given

__all__ = ["OPERATIONS", "Arguments", "Given", "elementwise", "layers", "movement", "stored"]
