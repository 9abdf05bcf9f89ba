"""The server's answers to web/: routes, models known without a file, and what a file's header tells."""
