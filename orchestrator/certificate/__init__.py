"""The integration certificate: what is proved of a backbone before it is compared, and where that is kept."""
