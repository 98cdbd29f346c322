"""Files that lie elsewhere: repositories of the Hugging Face Hub and object stores, pinned, listed, and fetched."""
