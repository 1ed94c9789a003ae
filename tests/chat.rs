//! Chat templates against transformers' renderings (`tests/data/chat-templates.json`, and all of them where the shared
//! data lies beside the checkout).

use minference::Error;
use minference::chat::{ChatTemplate, Message};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

fn data(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let shared = root.join("../shared/family-golden").join(name);
    if shared.exists() { shared } else { root.join("tests/data").join(name) }
}

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new("t.jinja".as_ref(), source, "<s>", "</s>").unwrap()
}

/// A template of no variables but these.
fn render(source: &str, variables: Value) -> Result<String, Error> {
    let Value::Object(variables) = variables else { panic!("variables are an object") };
    template(source).render_with(&json!([]), false, &variables)
}

fn check_cases(path: &Path) -> usize {
    let sets: Map<String, Value> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let mut checked = 0;
    for (name, set) in &sets {
        let token = |key: &str| set[key].as_str().unwrap_or_default();
        let source = set["template"].as_str().unwrap();
        let template = ChatTemplate::new(name.as_ref(), source, token("bos_token"), token("eos_token")).unwrap();
        for case in set["cases"].as_array().unwrap() {
            let mut more = Map::new();
            for key in ["tools", "enable_thinking"] {
                more.extend(case.get(key).map(|value| (key.to_owned(), value.clone())));
            }
            let prompt = case["add_generation_prompt"].as_bool().unwrap();
            let got = template.render_with(&case["messages"], prompt, &more);
            match (got, case["rendered"].as_str(), case["error"].as_str()) {
                (Ok(got), Some(want), _) => assert_eq!(got, want, "{name}: {}", case["name"]),
                (Err(e @ Error::Invalid(_)), None, Some(want)) => {
                    assert!(e.to_string().contains(want), "{name}: {}: {e}", case["name"]);
                }
                (got, ..) => panic!("{name}: {}: {got:?}", case["name"]),
            }
            checked += 1;
        }
    }
    checked
}

#[test]
fn committed_cases() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/chat-templates.json");
    assert!(check_cases(&path) >= 20);
}

#[test]
fn all_cases() {
    let path = data("chat-templates.json");
    let least = if path.components().any(|c| c.as_os_str() == "shared") { 60 } else { 20 };
    assert!(check_cases(&path) >= least);
}

/// `json.dumps` of Python 3.11.
#[test]
fn tojson_as_transformers() {
    let x = json!({"x": {"b": [1, 2.5, true, null], "a": "<é'\"\n>", "e": [], "o": {}}});
    assert_eq!(
        render("{{ x | tojson }}", x.clone()).unwrap(),
        r#"{"b": [1, 2.5, true, null], "a": "<é'\"\n>", "e": [], "o": {}}"#
    );
    assert_eq!(
        render("{{ x | tojson(indent=2) }}", x.clone()).unwrap(),
        "{\n  \"b\": [\n    1,\n    2.5,\n    true,\n    null\n  ],\n  \"a\": \"<é'\\\"\\n>\",\n  \"e\": [],\n  \"o\": {}\n}"
    );
    assert_eq!(
        render("{{ x | tojson(separators=(',', ':'), sort_keys=true, ensure_ascii=true) }}", x).unwrap(),
        r#"{"a":"<\u00e9'\"\n>","b":[1,2.5,true,null],"e":[],"o":{}}"#
    );
    assert_eq!(render("{{ x | tojson(ensure_ascii=true) }}", json!({"x": "🙂"})).unwrap(), r#""\ud83d\ude42""#);
    assert!(render("{{ 1 | tojson(separators=[',']) }}", json!({})).is_err());
    assert!(render("{{ 1 | tojson(colour=1) }}", json!({})).is_err());
}

#[test]
fn python_in_templates() {
    let of = |source: &str| render(source, json!({"x": true, "s": "  a,b </think>\nc", "list": [3, 1]})).unwrap();
    assert_eq!(of("{{ x }} {{ not x }} {{ none }} {{ absent }}|{{ bos_token }}"), "True False None |<s>");
    assert_eq!(of("{{ s.split('</think>')[-1].lstrip('\\n') }}{{ s.strip().startswith('a') }}"), "cTrue");
    assert_eq!(of("{% for i in list %}{% if loop.last %}{% break %}{% endif %}{{ i }}{% endfor %}"), "3");
    assert_eq!(of("{{ list[::-1] | join(' ') }} {{ 'a' in s }} {{ list | length }}"), "1 3 True 2");
    assert_eq!(of("{% generation %}\ny\n{% endgeneration %}\nz"), "y\nz");
    assert_eq!(of("{% if tools is none and tools is defined %}no tools{% endif %}"), "no tools");
    assert_eq!(of("{{ strftime_now('%Y') | length }}"), "4");
}

#[test]
fn errors_are_one_line() {
    let error = ChatTemplate::new("t.jinja".as_ref(), "a\n{% if %}", "", "").err().unwrap();
    assert!(error.to_string().starts_with("t.jinja: chat template: ") && error.exit_code() == 2, "{error}");
    for source in ["{{ raise_exception('no such role') }}", "{{ absent.field }}", "{{ 1 | unknown }}"] {
        let error =
            ChatTemplate::new("t.jinja".as_ref(), source, "", "").and_then(|t| t.render(&[], true)).unwrap_err();
        assert!(!error.to_string().contains('\n') && error.exit_code() == 2, "{error}");
    }
    let error = render("{{ raise_exception('no such role') }}", json!({})).unwrap_err().to_string();
    assert!(error.contains("no such role"), "{error}");
}

/// A template from a stranger can neither run for ever nor fill the memory.
#[test]
fn runaway_templates_end() {
    let forever = "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}";
    let huge =
        "{% set ns = namespace(x='0123456789') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}";
    for source in [forever, huge] {
        assert!(matches!(render(source, json!({})), Err(Error::Invalid(_))));
    }
}

#[test]
fn templates_of_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    let hello = [Message::user("Hello")];
    let rendered = || ChatTemplate::from_dir(dir.path()).unwrap().unwrap().render(&hello, false).unwrap();
    assert!(ChatTemplate::from_dir(dir.path()).unwrap().is_none());

    write("chat_template.json", r#"{"chat_template": "json {{ messages[0].content }}"}"#);
    assert_eq!(rendered(), "json Hello");
    write(
        "tokenizer_config.json",
        r#"{"chat_template": "{{ bos_token }}text{{ eos_token }}", "bos_token": "<a>", "eos_token": {"content": "<b>"}}"#,
    );
    assert_eq!(rendered(), "<a>text<b>");
    write("chat_template.jinja", "jinja");
    assert_eq!(rendered(), "jinja");
    std::fs::remove_file(dir.path().join("chat_template.jinja")).unwrap();

    let named = r#"{"chat_template": [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]}"#;
    write("tokenizer_config.json", named);
    let template = ChatTemplate::from_dir(dir.path()).unwrap().unwrap();
    assert_eq!(template.render(&hello, true).unwrap(), "d");
    let tools = Map::from_iter([("tools".to_owned(), json!([{"name": "f"}]))]);
    assert_eq!(template.render_with(&json!([]), true, &tools).unwrap(), "t");
    write(
        "tokenizer_config.json",
        r#"{"chat_template": [{"name": "a", "template": "d"}, {"name": "b", "template": "t"}]}"#,
    );
    let error = ChatTemplate::from_dir(dir.path()).unwrap().unwrap().render(&hello, true).unwrap_err().to_string();
    assert_eq!(error, "chat template: none is called default among a, b");
    for (bad, part) in [
        ("[1", "EOF"),
        (r#"{"chat_template": 5}"#, "found 5"),
        (r#"{"chat_template": [{"name": "a"}]}"#, "a name and a template"),
    ] {
        write("tokenizer_config.json", bad);
        let error = ChatTemplate::from_dir(dir.path()).err().unwrap().to_string();
        assert!(error.contains("tokenizer_config.json: ") && error.contains(part), "{error}");
    }
}
