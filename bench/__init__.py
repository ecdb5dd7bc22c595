"""Measures a VCH next to a dockerd on the same machine in the same run: `python -m bench --guest-image DIR`."""
