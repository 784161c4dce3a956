"""The host side: finds the parts of any transformers VLM, hooks them, and keeps cache and masks right."""
