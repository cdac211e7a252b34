"""Sealstream's workers and the layers below them; imports go downward only (see `make check`)."""
