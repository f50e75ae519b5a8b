"""Before any test is collected: threads that share the machine, as those of the product's own processes do."""

from device_profiler.threads import share_cores

share_cores()
