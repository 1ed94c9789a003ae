//! Loop unrolling in WGSL text, for kernels whose accumulators must be named variables.
//!
//! Drivers keep a `var` in registers and move an array that a loop indexes to memory, and naga has no unroll hint and no
//! arrays of cooperative matrices. So a kernel may write its loops over registers as
//!
//! ```text
//! //@for i 0 ROWS
//!   var m${i} = LOWEST;
//! //@end
//! ```
//!
//! Bounds and `${...}` are integer expressions (`+ - * / %`, parentheses) over the loop variables and the integer
//! constants of the prelude. Nothing else is a directive: variants are chosen by linking, not by conditions.

use crate::{Error, Result};
use std::collections::BTreeMap;

/// Names an expression may use.
pub type Constants = BTreeMap<String, i64>;

/// The text with every `//@for` unrolled and every `${...}` replaced by its value.
pub fn unroll(source: &str, constants: &Constants) -> Result<String> {
    let lines: Vec<&str> = source.lines().collect();
    let mut out = String::with_capacity(source.len() * 2);
    let end = block(&lines, 0, &mut constants.clone(), &mut out)?;
    if end < lines.len() {
        return Err(error(end, "//@end without //@for"));
    }
    Ok(out)
}

fn error(line: usize, what: impl std::fmt::Display) -> Error {
    Error::invalid(format!("WGSL line {}: {what}", line + 1))
}

/// Expands from line `at` to the `//@end` of this block, whose line number it returns (the number of lines at the top level).
fn block(lines: &[&str], mut at: usize, names: &mut Constants, out: &mut String) -> Result<usize> {
    while at < lines.len() {
        let text = lines[at].trim_start();
        if let Some(head) = text.strip_prefix("//@for ") {
            let mut words = head.split_whitespace();
            let (Some(name), Some(first), Some(last), None) = (words.next(), words.next(), words.next(), words.next())
            else {
                return Err(error(at, "expected //@for NAME FIRST END"));
            };
            let (first, last) =
                (evaluate(first, names).map_err(|e| error(at, e))?, evaluate(last, names).map_err(|e| error(at, e))?);
            let outer = names.get(name).copied();
            let mut end = skip(lines, at)?;
            for value in first..last {
                names.insert(name.into(), value);
                end = block(lines, at + 1, names, out)?;
            }
            match outer {
                Some(value) => names.insert(name.into(), value),
                None => names.remove(name),
            };
            at = end + 1;
        } else if text == "//@end" {
            return Ok(at);
        } else {
            substitute(lines[at], names, out).map_err(|e| error(at, e))?;
            at += 1;
        }
    }
    Ok(at)
}

/// The line of the `//@end` that closes the `//@for` at line `at`.
fn skip(lines: &[&str], at: usize) -> Result<usize> {
    let mut depth = 0;
    for (i, line) in lines.iter().enumerate().skip(at) {
        let text = line.trim_start();
        depth += usize::from(text.starts_with("//@for "));
        depth -= usize::from(text == "//@end");
        if depth == 0 {
            return Ok(i);
        }
    }
    Err(error(at, "//@for without //@end"))
}

fn substitute(line: &str, names: &Constants, out: &mut String) -> Result<(), String> {
    let mut rest = line;
    while let Some((before, after)) = rest.split_once("${") {
        let (expression, tail) = after.split_once('}').ok_or("${ without }")?;
        out.push_str(before);
        out.push_str(&evaluate(expression, names)?.to_string());
        rest = tail;
    }
    out.push_str(rest);
    out.push('\n');
    Ok(())
}

fn evaluate(expression: &str, names: &Constants) -> Result<i64, String> {
    let mut rest = expression.trim();
    let value = sum(&mut rest, names)?;
    if rest.is_empty() { Ok(value) } else { Err(format!("'{expression}': what is '{rest}'?")) }
}

fn operator(rest: &mut &str, allowed: &[char]) -> Option<char> {
    let found = rest.trim_start().chars().next().filter(|c| allowed.contains(c))?;
    *rest = rest.trim_start()[1..].trim_start();
    Some(found)
}

fn sum(rest: &mut &str, names: &Constants) -> Result<i64, String> {
    let mut value = product(rest, names)?;
    while let Some(op) = operator(rest, &['+', '-']) {
        let right = product(rest, names)?;
        value = if op == '+' { value + right } else { value - right };
    }
    Ok(value)
}

fn product(rest: &mut &str, names: &Constants) -> Result<i64, String> {
    let mut value = atom(rest, names)?;
    while let Some(op) = operator(rest, &['*', '/', '%']) {
        let right = atom(rest, names)?;
        value = match op {
            '*' => value * right,
            _ if right == 0 => return Err("division by zero".into()),
            '/' => value / right,
            _ => value % right,
        };
    }
    Ok(value)
}

fn atom(rest: &mut &str, names: &Constants) -> Result<i64, String> {
    if operator(rest, &['(']).is_some() {
        let value = sum(rest, names)?;
        return operator(rest, &[')']).map(|_| value).ok_or_else(|| "( without )".into());
    }
    let length = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
    let word = &rest[..length];
    *rest = rest[length..].trim_start();
    match word.parse() {
        Ok(number) => Ok(number),
        Err(_) => names.get(word).copied().ok_or_else(|| format!("unknown name '{word}'")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expand(source: &str) -> Result<String> {
        unroll(source, &Constants::from([("ROWS".into(), 2), ("D".into(), 96)]))
    }

    #[test]
    fn loops_nest_and_expressions_follow_precedence() {
        let source = "a\n//@for i 0 ROWS\n//@for j i ROWS\n${i}${j} ${D/(1+ROWS)-3*i % 2};\n//@end\n//@end\nb";
        assert_eq!(expand(source).unwrap(), "a\n00 32;\n01 32;\n11 31;\nb\n");
    }

    #[test]
    fn an_empty_loop_leaves_nothing() {
        assert_eq!(expand("//@for i 2 ROWS\n${i}\n//@end\nx").unwrap(), "x\n");
    }

    #[test]
    fn mistakes_name_their_line() {
        for (source, what) in [
            ("x\n//@for i 0 COLS\n//@end", "line 2: unknown name 'COLS'"),
            ("//@for i 0 ROWS", "line 1: //@for without //@end"),
            ("//@end", "line 1: //@end without //@for"),
            ("${1 +}", "line 1: unknown name ''"),
            ("${(1}", "line 1: ( without )"),
            ("${1/0}", "line 1: division by zero"),
        ] {
            let message = expand(source).unwrap_err().to_string();
            assert!(message.contains(what), "{message}");
        }
    }
}
