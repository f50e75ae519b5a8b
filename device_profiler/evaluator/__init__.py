"""A saved Core ML package evaluated with torch on any machine; no clock.

``package`` reads the files, ``evaluate`` gives a function's outputs, ``audit`` tells of every operation how large it
became and what float16 cost it, ``check`` compares a package with the torch module that it was made from.
"""
