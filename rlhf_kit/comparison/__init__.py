"""Methods of preference tuning side by side: trained, measured by one code path, and laid on two axes."""
