"""Makes a Linux child process a Mac below coremltools: where its extension module would be stands ``mac_proxies``.

Python imports this file by itself at start; without ``MAC_STANDIN`` in the environment it does nothing.
"""

import os
import sys

if os.environ.get("MAC_STANDIN"):
    import warnings

    warnings.simplefilter("ignore")
    import mac_proxies

    sys.modules["coremltools.libcoremlpython"] = mac_proxies
    import coremltools.models.utils

    coremltools.models.utils._is_macos = lambda: True
