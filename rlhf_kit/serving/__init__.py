"""The pages in the browser: rank answers, give thumbs, see how far labelers agree. `rlhf-kit ui`; needs `[ui]`."""
