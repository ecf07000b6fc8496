"""What the status pages of the daemons share: figures for people, and a page that refreshes itself. Pure."""
