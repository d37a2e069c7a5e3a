//! `/console`, the operator's page (CONTRACT.md 9). What it does in a browser is tested in `tests/clients/browser/console.test.mjs`.

use crate::harness::*;
use std::collections::BTreeSet;

/// What a text names under `/console/`, or imports from beside it.
fn references(text: &str) -> impl Iterator<Item = String> {
    text.split(['"', '\'']).filter_map(|word| {
        let name = word.strip_prefix("/console/").or_else(|| word.strip_prefix("./"))?;
        Some(format!("/console/{name}"))
    })
}

#[test]
fn the_operators_page_needs_no_credentials_and_nothing_from_elsewhere() {
    let node = Node::start();
    let mut found = BTreeSet::from(["/console".to_owned()]);
    let mut read = BTreeSet::new();
    while let Some(path) = found.pop_first() {
        let answer = Request::get(&path).send(node.address()).expect(200);
        let kind = match path.rsplit_once('.') {
            Some((_, "js")) => "text/javascript; charset=utf-8",
            Some((_, "css")) => "text/css; charset=utf-8",
            _ => "text/html; charset=utf-8",
        };
        assert_eq!(answer.header("content-type"), Some(kind), "{path}");
        let policy = answer.header("content-security-policy").unwrap();
        for rule in [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "connect-src 'self'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "base-uri 'none'",
            "require-trusted-types-for 'script'",
        ] {
            assert!(policy.split("; ").any(|given| given == rule), "{path}: {policy}");
        }
        assert!(!policy.contains("unsafe"), "{path}: {policy}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(answer.header("referrer-policy"), Some("no-referrer"));
        assert_eq!(answer.header("cache-control"), Some("no-cache"));
        let text = answer.text();
        let outside = text.replace("http://www.w3.org/2000/svg", "");
        assert!(!outside.contains("http://") && !outside.contains("https://"), "{path}");
        for unfit in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "localStorage", "style=\""] {
            assert!(!text.contains(unfit), "{path}: {unfit}");
        }
        read.insert(path);
        found.extend(references(&text).filter(|reference| !read.contains(reference)));
    }
    assert!(read.len() >= 4, "{read:?}");
}

#[test]
fn it_has_one_address() {
    let node = Node::start();
    let answer = Request::get("/console/").send(node.address());
    assert_eq!((answer.status, answer.header("location")), (308, Some("/console")));
    for path in ["/console", "/console/app.js"] {
        let answer = Request::post(path).json("{}").send(node.address());
        answer.problem(405, "method_not_allowed");
        assert_eq!(answer.header("allow"), Some("GET"), "{path}");
    }
    for path in ["/console/other.js", "/console/..%2Fopenapi.json", "/console/app.js/", "/consoles"] {
        Request::get(path).send(node.address()).problem(404, "not_found");
    }
    Request::get("/console").send(node.admin_address()).expect(404);
}
