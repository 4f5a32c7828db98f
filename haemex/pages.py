"""What the HTML pages share: how their templates are read, and how they print counts and the names of settings."""

import re


def page_environment(template_folder):
    """Make the environment in which the templates of `workflow/report` are filled.

    Text is escaped, a name that is not given is an error; the filters `code` and `plural` are the functions below.

    Parameters
    ----------
    template_folder : path-like
        `workflow/report`.

    Returns
    -------
    jinja2.Environment
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template_folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"code": with_code, "plural": plural}
    return environment


def with_code(text):
    """Set what stands between two backticks as code; HTML."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(escape(text))))


def plural(count, noun):
    """Print a count with its noun: 1 patient, 2 patients."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
