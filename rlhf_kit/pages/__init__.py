"""What all HTML pages of the kit share: the layout and the charts."""
