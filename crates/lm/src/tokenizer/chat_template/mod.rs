//! Chat templates: Jinja as transformers renders it, within limits.
//!
//! A template comes with a downloaded model, so its author may be hostile. minijinja parses it; an evaluator here runs
//! it, because the engine's own operators have no limits. Every node that is evaluated and every byte that is read or
//! written is paid for from a budget (`budget.rs`): 12 million units of work, 48 MiB of values and 1.5 seconds.
//! No single operation runs longer than what it has paid for.

mod budget;
mod eval;
mod expr;
mod filters;
mod list;
mod methods;
mod names;
mod predicates;
mod program;
mod strftime;
mod tojson;
mod value;
mod vm;

use alluvium_core::{Error, Result};
use budget::Budget;
use minijinja::machinery::parse;
use minijinja::syntax::SyntaxConfig;
use program::{Compiler, Program};
use serde_json::Value as Json;
use std::thread;
use std::time::SystemTime;
use value::Value;
use vm::Vm;

/// Bytes of a template. The largest published ones have some twenty thousand.
const LARGEST: usize = 64 << 10;
/// Brackets that may be open at once. The parser counts them in expressions, but not in the targets of a loop.
const BRACKETS: usize = 400;
/// Bytes of stack of the thread that parses or renders. The parser recurses once for each operator in a row. Memory
/// that is never touched costs nothing.
const STACK: usize = 128 << 20;

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    name: String,
    program: Program,
}

impl ChatTemplate {
    /// Compiles the source of a template. Blocks are trimmed as in transformers: `trim_blocks` and `lstrip_blocks`.
    ///
    /// # Errors
    /// When the source is larger than 64 KiB, is not Jinja, is nested too deeply or needs other templates.
    pub fn new(source: &str) -> Result<Self> {
        Self::named("template", source)
    }

    /// As [`ChatTemplate::new`], with the name of the file for errors.
    ///
    /// # Errors
    /// As [`ChatTemplate::new`].
    pub fn named(name: &str, source: &str) -> Result<Self> {
        if source.len() > LARGEST {
            return Err(fault(format!("it has {} bytes, at most {LARGEST} are read", source.len())));
        }
        if brackets(source) > BRACKETS {
            return Err(fault(format!("more than {BRACKETS} brackets are open at once")));
        }
        let source = without_generation_tags(&source.replace("\r\n", "\n").replace('\r', "\n"));
        let program = on_own_thread(|| {
            let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
            let tree = syntax.and_then(|syntax| parse(&source, "template", syntax));
            Compiler::compile(&tree.map_err(|error| worded(&error, name))?)
        })?;
        Ok(ChatTemplate { name: name.to_owned(), program })
    }

    /// Renders the template. `context` is an object of variables.
    ///
    /// # Errors
    /// When the template fails, calls `raise_exception`, or exceeds a limit of work, memory or time.
    pub fn render(&self, context: &Json) -> Result<String> {
        self.render_at(context, SystemTime::now())
    }

    /// As [`ChatTemplate::render`], with the time that `strftime_now` writes.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn render_at(&self, context: &Json, now: SystemTime) -> Result<String> {
        on_own_thread(|| {
            let context = Value::from_json(context, &Budget::unlimited())?;
            Vm::run(&self.program, &context, now).map_err(|(why, line)| format!("{why} (in {}:{line})", self.name))
        })
    }
}

fn fault(why: impl Into<String>) -> Error {
    Error::value("chat template", why.into())
}

fn worded(error: &minijinja::Error, name: &str) -> String {
    let line = error.line().map_or(String::new(), |line| format!(" (in {name}:{line})"));
    let detail = error.detail().map_or(String::new(), |detail| format!(": {detail}"));
    format!("{}{detail}{line}", error.kind())
}

/// Runs a part on a thread with a large stack. A panic of the parser is an error, too.
fn on_own_thread<T: Send>(part: impl FnOnce() -> std::result::Result<T, String> + Send) -> Result<T> {
    let done = thread::scope(|scope| {
        let thread = thread::Builder::new().name("chat template".to_owned()).stack_size(STACK);
        thread.spawn_scoped(scope, part).map(thread::ScopedJoinHandle::join)
    });
    match done {
        Ok(Ok(result)) => result.map_err(fault),
        Ok(Err(_)) => Err(fault("the template engine panicked")),
        Err(error) => Err(fault(format!("cannot start a thread: {error}"))),
    }
}

/// The largest number of brackets that are open at once.
fn brackets(source: &str) -> usize {
    let (mut open, mut most) = (0_usize, 0);
    for byte in source.bytes() {
        match byte {
            b'(' | b'[' | b'{' => open += 1,
            b')' | b']' | b'}' => open = open.saturating_sub(1),
            _ => {}
        }
        most = most.max(open);
    }
    most
}

/// Removes `{% generation %}`: it marks the assistant's part for training and writes nothing.
fn without_generation_tags(source: &str) -> String {
    let mut text = source.to_owned();
    for (tag, plain) in [("endgeneration", "endif"), ("generation", "if true")] {
        for (open, close) in [("{%", "%}"), ("{%-", "%}"), ("{%", "-%}"), ("{%-", "-%}")] {
            text = text.replace(&format!("{open} {tag} {close}"), &format!("{open} {plain} {close}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn try_render(template: &str, context: Json) -> Result<String> {
        ChatTemplate::new(template)?.render(&context)
    }

    fn rendered(template: &str, context: Json) -> String {
        try_render(template, context).unwrap()
    }

    fn error(template: &str) -> String {
        try_render(template, json!({})).unwrap_err().to_string()
    }

    #[test]
    fn templates_have_what_those_of_checkpoints_use() {
        let messages = json!([{"role": "user", "content": " hi "}, {"role": "assistant", "content": "</think>yes"}]);
        let text = rendered(
            "{%- set ns = namespace(n=0) %}\n{% for m in messages %}\n    {% set ns.n = ns.n + 1 %}\n{{ m['role'].upper() }}:{{ m.content.strip().split('</think>')[-1] }};\n{% endfor %}\n{{ ns.n }}{{ messages[::-1][0].role }}",
            json!({"messages": messages}),
        );
        assert_eq!(text, "USER:hi;\nASSISTANT:yes;\n2assistant");
        for (template, context, want) in [
            ("{% for i in range(9) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}", json!({}), "012"),
            ("{% generation %}a{%- endgeneration %}", json!({}), "a"),
            ("{{ x is defined }}{{ y is none }}{{ 'a' in 'cat' }}", json!({"y": null}), "FalseTrueTrue"),
            ("{% for m in x %}{{ loop.previtem }}|{{ loop.nextitem }};{% endfor %}", json!({"x": [1, 2]}), "|2;1|;"),
            (
                "{% macro f(a, b=2) %}{{ a }}{{ b }}{{ caller() }}{% endmacro %}{% call f(1) %}x{% endcall %}",
                json!({}),
                "12x",
            ),
            (
                "{% for a in x recursive %}{{ a.n }}{{ loop(a.x) }}{% endfor %}",
                json!({"x": [{"n": 1, "x": [{"n": 2}]}]}),
                "12",
            ),
            ("{% set x %}a{{ 1 }}{% endset %}{{ x | upper }}{% filter upper %}b{% endfilter %}", json!({}), "A1B"),
            (
                "{{ 'a b  c'.split(None, 1) }}{{ (1,) }}{{ {'a': [1.5, none]} }}",
                json!({}),
                "['a', 'b  c'](1,){'a': [1.5, None]}",
            ),
            (
                "{{ [3, 1, 2][::-1] }}{{ 'abcd'[1:-1] }}{{ 'abc'[-1] }}{{ [1, 2][5] is defined }}",
                json!({}),
                "[2, 1, 3]bccFalse",
            ),
            (
                "{{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 / 2 }} {{ 2 ** 10 }} {{ 1e20 }} {{ 1e-5 }}",
                json!({}),
                "3 -4 2 3.5 1024 1e+20 1e-05",
            ),
            (
                "{{ x | selectattr('a', 'equalto', 1) | map(attribute='b') | join(', ') }}",
                json!({"x": [{"a": 1, "b": 2}, {"a": 3}]}),
                "2",
            ),
            (
                "{{ x | dictsort }}{{ x.items() | list | length }}{{ x.get('z', 'none') }}",
                json!({"x": {"b": 1, "a": 2}}),
                "[('a', 2), ('b', 1)]2none",
            ),
            ("a\r\nb", json!({}), "a\nb"),
        ] {
            assert_eq!(rendered(template, context), want, "{template}");
        }
    }

    #[test]
    fn generators_views_and_markup_behave_as_in_python() {
        let x = json!({"a": [1, 0, 2], "d": {"k": "v"}, "n": null});
        for (template, want) in [
            ("{{ n | selectattr('x') | list }}{{ n | map('upper') | list }}{{ 0 | reject | list }}", "[][][]"),
            ("{{ 'true' if a | select('equalto', 7) else 'false' }}", "true"),
            ("{% set g = a | select %}{% for i in g %}{{ i }}{% endfor %}-{% for i in g %}{{ i }}{% endfor %}", "12-"),
            ("{% set g = a | select %}{{ g | first }}{{ g | list }}{{ 1 in g }}", "1[2]False"),
            ("{{ (a | select)[0] }}|{{ (a | reverse)[0] }}|{{ d.keys()[0] }}|", "|||"),
            ("{{ a | unique | sort }}{{ a | batch(2) | list }}", "[0, 1, 2][[1, 0], [2]]"),
            ("{{ (a | map('string')) == (a | map('string')) }}{{ [1] == (1,) }}", "FalseFalse"),
            ("{{ d.items() }}{{ d.keys() }}{{ d.values() | list }}", "dict_items([('k', 'v')])dict_keys(['k'])['v']"),
            (
                "{{ a | map('string') is sequence }}{{ a | map('string') is iterable }}{{ u is sequence }}",
                "FalseTrueTrue",
            ),
            ("{% set s = '<' | safe %}{{ s + '<' }}{{ '<' + s }}{{ s ~ '<' }}{{ s is escaped }}", "<&lt;&lt;<<<True"),
            ("{{ '<' | safe + ('>' | safe) + '<' }}", "<>&lt;"),
            ("{{ '<' | e + '<' }}{{ '<' | e | e }}{{ '<' | e | forceescape }}", "&lt;&lt;&lt;&amp;lt;"),
        ] {
            assert_eq!(rendered(template, x.clone()), want, "{template}");
        }
        for template in [
            "{{ a | select | length }}",
            "{{ a | select | tojson }}",
            "{{ d.items() | tojson }}",
            "{{ (a | select)[1:] }}",
            "{{ a | select | last }}",
            "{{ d | items | length }}",
            "{{ [1] + (1,) }}",
            "{{ (a | select) + [1] }}",
            "{{ n[1:] }}",
            "{{ u[1:] }}",
            "{{ n | list }}",
        ] {
            assert!(try_render(template, x.clone()).is_err(), "{template}");
        }
    }

    #[test]
    fn json_is_written_as_python_does() {
        let x = json!({"x": {"b": [1, 2.5, null], "a": "<é>", "t": true, "e": {}}});
        assert_eq!(rendered("{{ x | tojson }}", x.clone()), r#"{"b": [1, 2.5, null], "a": "<é>", "t": true, "e": {}}"#);
        assert_eq!(rendered("{{ x.b | tojson(indent=2) }}", x.clone()), "[\n  1,\n  2.5,\n  null\n]");
        let ascii = "{{ x | tojson(ensure_ascii=true, separators=(',', ':'), sort_keys=true) }}";
        assert_eq!(rendered(ascii, x), "{\"a\":\"<\\u00e9>\",\"b\":[1,2.5,null],\"e\":{},\"t\":true}");
        assert_eq!(
            rendered("{{ x | tojson }}", json!({"x": [1e-5, 1e20, 18446744073709551615u64]})),
            "[1e-05, 1e+20, 18446744073709551615]"
        );
    }

    #[test]
    fn an_error_names_its_reason_and_its_line() {
        assert!(
            error("\n{{ raise_exception('roles must alternate') }}").contains("roles must alternate (in template:2)")
        );
        assert!(error("{% if %}").starts_with("chat template: "), "{}", error("{% if %}"));
        assert!(error("{{ a.b }}").contains("`a` is undefined"), "{}", error("{{ a.b }}"));
        assert!(error("{{ 'a'.foo() }}").contains("string has no method named foo"));
        let large = " ".repeat(LARGEST + 1);
        assert_eq!(error(&large), "chat template: it has 65537 bytes, at most 65536 are read");
        let nested = format!("{{% for {}a{} in [] %}}{{% endfor %}}", "(".repeat(9_999), ",)".repeat(9_999));
        assert_eq!(error(&nested), "chat template: more than 400 brackets are open at once");
        assert!(error("{% for i in range(2) %}{{ loop.cycle() }}{% endfor %}").contains("cycle"));
        assert!(error("{{ [1] | tojson(indent=999999999) }}").contains("too wide"));
        assert!(error("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}").contains("recursion"));
    }

    #[test]
    fn many_operators_in_a_row_are_an_answer_or_an_error() {
        let ends = [
            ("1+", "1"),
            ("-", "1"),
            ("not ", "1"),
            ("'a' ~ ", "1"),
            ("1**", "1"),
            ("1 if 1 else ", "1"),
            ("x.a or ", "1"),
            ("1 == ", "1"),
        ];
        for (again, last) in ends {
            let all = format!("{{{{ {}{last} }}}}", again.repeat((LARGEST - 20) / again.len()));
            let _ = try_render(&all, json!({}));
        }
        for again in ["|string", "[0]", ".a", "()", " is defined"] {
            let _ = try_render(&format!("{{{{ x{} }}}}", again.repeat((LARGEST - 20) / again.len())), json!({}));
        }
        for (again, end) in
            [("{% elif 0 %}", ""), ("{% else %}{% if 0 %}", "{% endif %}"), ("{% if 1 %}", "{% endif %}")]
        {
            let times = (LARGEST - 40) / (again.len() + end.len());
            let all = format!("{{% if 0 %}}{}{}{{% endif %}}", again.repeat(times), end.repeat(times));
            let _ = try_render(&all, json!({}));
        }
    }
}
