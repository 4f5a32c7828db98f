"""What the pages share: escaped text, names of settings as code, no value forgotten."""

import jinja2
import pytest

from haemex.pages import page_environment, plural, with_code


def test_what_stands_between_backticks_is_code_and_all_else_is_escaped():
    assert str(with_code("set `a<b` to & 1")) == "set <code>a&lt;b</code> to &amp; 1"
    assert str(with_code("`a`, `b` and a lone `")) == "<code>a</code>, <code>b</code> and a lone `"


def test_templates_escape_text_and_refuse_a_value_that_is_not_given(tmp_path):
    (tmp_path / "page.html.j2").write_text("{% if true %}\n<p>{{ text|code }}</p>\n{% endif %}\n{{ plain }}\n")
    template = page_environment(tmp_path).get_template("page.html.j2")
    assert template.render(text="`x` & <b>", plain="<i>") == "<p><code>x</code> &amp; &lt;b&gt;</p>\n&lt;i&gt;\n"
    with pytest.raises(jinja2.UndefinedError, match="plain"):
        template.render(text="")


def test_a_count_agrees_with_its_noun():
    assert [plural(count, "patient") for count in (0, 1, 2)] == ["0 patients", "1 patient", "2 patients"]
