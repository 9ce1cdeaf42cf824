"""The exit codes of the subcommands that explain photos, as their help shows them."""

__all__ = ["EXIT_CODES"]

EXIT_CODES = """\
Exit codes:
  0    all photos were explained
  1    some photos could not be read or explained; standard error names them,
       and all others were explained
  2    an option is wrong, or a file or package is missing; standard error says
       which
  130  interrupted with Ctrl-C
  141  the output was piped into another program, which stopped reading it
"""
