"""The short form of the tests of a device: operators, speed and a few steps, for a page to paste into a bug report."""
