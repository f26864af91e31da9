//! From a parsed template to one that cannot do harm: the tree is rebuilt with
//!
//!   - the control tokens of its literals marked (marks.rs),
//!   - every operator that multiplies data replaced by a filter that pays for it, everything that reads data wrapped in
//!     one that charges, and every new value made real (bounds.rs, runtime.rs),
//!   - what chat templates have no use for refused: includes, inheritance, argument splats.
//!
//! Filters, not functions, because a template cannot define or shadow a filter.

use crate::marks::{clean, Marks};
use crate::runtime::{CONSTANT_FILTERS, CONSTANT_TESTS, EXPLODING_FILTERS};
use minijinja::machinery::ast::{self, Expr, Spanned, Stmt};
use minijinja::machinery::Span;
use minijinja::value::{Value, ValueKind};

/// Nesting of the tree: expressions in expressions, blocks in blocks, chains of operators and of elif.
const DEPTH_MAX: usize = 400;

#[derive(Debug)]
pub enum Refused {
    TooDeep(u32),
    TooManyMarks,
    Unsupported(u32, &'static str),
}

/// What a string literal is for.
#[derive(Clone, Copy, PartialEq)]
enum Use {
    /// It may end up in the output.
    Text,
    /// It is compared with something or looked for in something.
    Key,
}

type Result<T> = std::result::Result<T, Refused>;

pub struct Rewriter<'m> {
    marks: &'m mut Marks,
    depth: usize,
}

fn line(span: Span) -> u32 {
    span.start_line as u32
}

fn spanned<T>(node: T, span: Span) -> Spanned<T> {
    Spanned::new(node, span)
}

fn filter<'a>(name: &'static str, expr: Expr<'a>, args: Vec<ast::CallArg<'a>>) -> Expr<'a> {
    let span = expr.span();
    Expr::Filter(spanned(ast::Filter { name, expr: Some(expr), args }, span))
}

fn wrap<'a>(name: &'static str, expr: Expr<'a>) -> Expr<'a> {
    filter(name, expr, Vec::new())
}

/// A constant whose comparison with anything takes constant time, or time that its own length bounds.
fn scalar(expr: &Expr<'_>) -> bool {
    matches!(expr, Expr::Const(c) if !matches!(c.value.kind(), ValueKind::Seq | ValueKind::Map))
}

impl<'m> Rewriter<'m> {
    pub fn new(marks: &'m mut Marks) -> Self {
        Rewriter { marks, depth: 0 }
    }

    fn nested<T>(&mut self, span: Span, f: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.depth >= DEPTH_MAX {
            return Err(Refused::TooDeep(line(span)));
        }
        self.depth += 1;
        let result = f(self);
        self.depth -= 1;
        result
    }

    fn literal(&mut self, text: &str, used: Use) -> Result<Value> {
        let text = clean(text);
        Ok(Value::from(match used {
            Use::Text => self.marks.apply(&text).map_err(|_| Refused::TooManyMarks)?,
            Use::Key => text,
        }))
    }

    pub fn template<'a>(&mut self, stmt: &Stmt<'a>) -> Result<Stmt<'a>> {
        self.stmt(stmt)
    }

    fn body<'a>(&mut self, stmts: &[Stmt<'a>]) -> Result<Vec<Stmt<'a>>> {
        stmts.iter().map(|s| self.stmt(s)).collect()
    }

    fn stmt<'a>(&mut self, stmt: &Stmt<'a>) -> Result<Stmt<'a>> {
        self.nested(Span::default(), |r| r.stmt_inner(stmt))
    }

    fn stmt_inner<'a>(&mut self, stmt: &Stmt<'a>) -> Result<Stmt<'a>> {
        Ok(match stmt {
            Stmt::Template(s) => Stmt::Template(spanned(ast::Template { children: self.body(&s.children)? }, s.span())),
            // Written by the formatter as all other text, so that it is paid for.
            Stmt::EmitRaw(s) => {
                let value = self.literal(s.raw, Use::Text)?;
                let expr = Expr::Const(spanned(ast::Const { value }, s.span()));
                Stmt::EmitExpr(spanned(ast::EmitExpr { expr }, s.span()))
            }
            Stmt::EmitExpr(s) => {
                // A call whose result is only written stays one: `loop(...)` and `caller()` write as they go.
                let expr = match &s.expr {
                    Expr::Call(c) => Expr::Call(self.call(c)?),
                    other => self.expr(other, Use::Text)?,
                };
                Stmt::EmitExpr(spanned(ast::EmitExpr { expr }, s.span()))
            }
            Stmt::ForLoop(s) => Stmt::ForLoop(spanned(
                ast::ForLoop {
                    target: self.target(&s.target, false)?,
                    iter: wrap("__each", self.expr(&s.iter, Use::Text)?),
                    filter_expr: self.optional(s.filter_expr.as_ref(), Use::Text)?,
                    recursive: s.recursive,
                    body: self.body(&s.body)?,
                    else_body: self.body(&s.else_body)?,
                },
                s.span(),
            )),
            Stmt::IfCond(s) => Stmt::IfCond(spanned(
                ast::IfCond {
                    expr: self.expr(&s.expr, Use::Text)?,
                    true_body: self.body(&s.true_body)?,
                    false_body: self.body(&s.false_body)?,
                },
                s.span(),
            )),
            Stmt::WithBlock(s) => {
                let mut assignments = Vec::new();
                for (target, expr) in &s.assignments {
                    assignments.push((self.target(target, false)?, self.expr(expr, Use::Text)?));
                }
                Stmt::WithBlock(spanned(ast::WithBlock { assignments, body: self.body(&s.body)? }, s.span()))
            }
            Stmt::Set(s) => {
                let expr = self.expr(&s.expr, Use::Text)?;
                let expr = if matches!(s.target, Expr::Var(_)) { expr } else { wrap("__set", expr) };
                Stmt::Set(spanned(ast::Set { target: self.target(&s.target, true)?, expr }, s.span()))
            }
            Stmt::SetBlock(s) => Stmt::SetBlock(spanned(
                ast::SetBlock {
                    target: self.target(&s.target, true)?,
                    filter: self.optional(s.filter.as_ref(), Use::Text)?,
                    body: self.body(&s.body)?,
                },
                s.span(),
            )),
            // Nothing is escaped, whatever is asked for.
            Stmt::AutoEscape(s) => Stmt::WithBlock(spanned(
                ast::WithBlock { assignments: Vec::new(), body: self.body(&s.body)? },
                s.span(),
            )),
            Stmt::FilterBlock(s) => Stmt::FilterBlock(spanned(
                ast::FilterBlock { filter: self.expr(&s.filter, Use::Text)?, body: self.body(&s.body)? },
                s.span(),
            )),
            Stmt::Macro(s) => Stmt::Macro(self.macro_(s)?),
            Stmt::CallBlock(s) => Stmt::CallBlock(spanned(
                ast::CallBlock { call: self.call(&s.call)?, macro_decl: self.macro_(&s.macro_decl)? },
                s.span(),
            )),
            Stmt::Continue(s) => Stmt::Continue(spanned(ast::Continue, s.span())),
            Stmt::Break(s) => Stmt::Break(spanned(ast::Break, s.span())),
            Stmt::Do(s) => Stmt::Do(spanned(ast::Do { call: self.call(&s.call)? }, s.span())),
            Stmt::Block(s) => return Err(Refused::Unsupported(line(s.span()), "block")),
            Stmt::Import(s) => return Err(Refused::Unsupported(line(s.span()), "import")),
            Stmt::FromImport(s) => return Err(Refused::Unsupported(line(s.span()), "import")),
            Stmt::Extends(s) => return Err(Refused::Unsupported(line(s.span()), "extends")),
            Stmt::Include(s) => return Err(Refused::Unsupported(line(s.span()), "include")),
        })
    }

    fn macro_<'a>(&mut self, s: &Spanned<ast::Macro<'a>>) -> Result<Spanned<ast::Macro<'a>>> {
        let mut args = Vec::new();
        for arg in &s.args {
            args.push(self.target(arg, false)?);
        }
        let mut defaults = Vec::new();
        for default in &s.defaults {
            defaults.push(self.expr(default, Use::Text)?);
        }
        Ok(spanned(ast::Macro { name: s.name, args, defaults, body: self.body(&s.body)? }, s.span()))
    }

    /// What is assigned to: a name, names in a tuple or, where `attributes`, a namespace's attribute.
    fn target<'a>(&mut self, target: &Expr<'a>, attributes: bool) -> Result<Expr<'a>> {
        self.nested(target.span(), |r| match target {
            Expr::Var(v) => Ok(Expr::Var(spanned(ast::Var { id: v.id }, v.span()))),
            Expr::GetAttr(g) if attributes => {
                let expr = r.target(&g.expr, false)?;
                Ok(Expr::GetAttr(spanned(ast::GetAttr { expr, name: g.name }, g.span())))
            }
            Expr::List(l) => {
                let mut items = Vec::new();
                for item in &l.items {
                    items.push(r.target(item, attributes)?);
                }
                Ok(Expr::List(spanned(ast::List { items }, l.span())))
            }
            other => Err(Refused::Unsupported(line(other.span()), "assignment to this")),
        })
    }

    fn optional<'a>(&mut self, expr: Option<&Expr<'a>>, used: Use) -> Result<Option<Expr<'a>>> {
        expr.map(|e| self.expr(e, used)).transpose()
    }

    fn args<'a>(
        &mut self,
        args: &[ast::CallArg<'a>],
        span: Span,
        used: impl Fn(usize) -> Use,
    ) -> Result<Vec<ast::CallArg<'a>>> {
        let mut out = Vec::new();
        for (i, arg) in args.iter().enumerate() {
            out.push(match arg {
                ast::CallArg::Pos(e) => ast::CallArg::Pos(self.expr(e, used(i))?),
                ast::CallArg::Kwarg(name, e) => ast::CallArg::Kwarg(name, self.expr(e, used(i))?),
                ast::CallArg::PosSplat(_) | ast::CallArg::KwargSplat(_) => {
                    return Err(Refused::Unsupported(line(span), "* and ** in arguments"))
                }
            });
        }
        Ok(out)
    }

    fn call<'a>(&mut self, c: &Spanned<ast::Call<'a>>) -> Result<Spanned<ast::Call<'a>>> {
        let method = match &c.expr {
            Expr::GetAttr(g) => g.name,
            _ => "",
        };
        let used = |i: usize| match (method, i) {
            // The first argument is looked for, the second is put in its place or stands in for it.
            ("replace" | "get", 0) => Use::Key,
            ("split" | "rsplit" | "strip" | "lstrip" | "rstrip" | "startswith" | "endswith", _) => Use::Key,
            ("find" | "rfind" | "index" | "rindex" | "count" | "removeprefix" | "removesuffix", _) => Use::Key,
            _ => Use::Text,
        };
        let mut args = self.args(&c.args, c.span(), used)?;
        if method == "changed" {
            args = args
                .into_iter()
                .map(|arg| match arg {
                    ast::CallArg::Pos(e) => ast::CallArg::Pos(wrap("__cost", e)),
                    other => other,
                })
                .collect();
        }
        let expr = match &c.expr {
            // Kept in shape: it is how the compiler knows a function and a method.
            Expr::Var(v) => Expr::Var(spanned(ast::Var { id: v.id }, v.span())),
            Expr::GetAttr(g) => {
                let expr = self.expr(&g.expr, Use::Text)?;
                Expr::GetAttr(spanned(ast::GetAttr { expr, name: g.name }, g.span()))
            }
            other => self.expr(other, Use::Text)?,
        };
        Ok(spanned(ast::Call { expr, args }, c.span()))
    }

    fn expr<'a>(&mut self, expr: &Expr<'a>, used: Use) -> Result<Expr<'a>> {
        self.nested(expr.span(), |r| r.expr_inner(expr, used))
    }

    fn constant(&mut self, value: &Value, used: Use) -> Result<Value> {
        match value.as_str() {
            Some(text) => self.literal(text, used),
            None => Ok(value.clone()),
        }
    }

    fn expr_inner<'a>(&mut self, expr: &Expr<'a>, used: Use) -> Result<Expr<'a>> {
        Ok(match expr {
            Expr::Var(v) => Expr::Var(spanned(ast::Var { id: v.id }, v.span())),
            Expr::Const(c) => Expr::Const(spanned(ast::Const { value: self.constant(&c.value, used)? }, c.span())),
            Expr::Slice(s) => {
                let mut bounds = Vec::new();
                for bound in [&s.start, &s.stop, &s.step] {
                    let none = || Expr::Const(spanned(ast::Const { value: Value::from(()) }, s.span()));
                    bounds.push(ast::CallArg::Pos(self.optional(bound.as_ref(), Use::Key)?.unwrap_or_else(none)));
                }
                filter("__slice", self.expr(&s.expr, used)?, bounds)
            }
            Expr::UnaryOp(u) => {
                let op = match u.op {
                    ast::UnaryOpKind::Not => ast::UnaryOpKind::Not,
                    ast::UnaryOpKind::Neg => ast::UnaryOpKind::Neg,
                };
                Expr::UnaryOp(spanned(ast::UnaryOp { op, expr: self.expr(&u.expr, used)? }, u.span()))
            }
            Expr::BinOp(b) => self.binary(b, used)?,
            Expr::Compare(c) => {
                let cheap = c.ops.len() == 1
                    && matches!(c.ops[0].op, ast::CompareOpKind::Eq | ast::CompareOpKind::Ne)
                    && (scalar(&c.expr) || scalar(&c.ops[0].expr));
                let first = self.compared(&c.expr, cheap)?;
                let mut ops = Vec::new();
                for op in &c.ops {
                    ops.push(ast::CompareOp { op: op.op, expr: self.compared(&op.expr, cheap)? });
                }
                Expr::Compare(spanned(ast::Compare { expr: first, ops }, c.span()))
            }
            Expr::IfExpr(i) => Expr::IfExpr(spanned(
                ast::IfExpr {
                    test_expr: self.expr(&i.test_expr, Use::Text)?,
                    true_expr: self.expr(&i.true_expr, used)?,
                    false_expr: self.optional(i.false_expr.as_ref(), used)?,
                },
                i.span(),
            )),
            Expr::Filter(f) => {
                let cost = if CONSTANT_FILTERS.contains(&f.name) {
                    None
                } else if EXPLODING_FILTERS.contains(&f.name) {
                    Some("__cost_chars")
                } else {
                    Some("__cost")
                };
                let inner = match (&f.expr, cost) {
                    (Some(e), Some(cost)) => Some(wrap(cost, self.expr(e, used)?)),
                    (Some(e), None) => Some(self.expr(e, used)?),
                    (None, _) => None, // what a block has written
                };
                let args = self.args(&f.args, f.span(), |i| match (f.name, i) {
                    ("replace", 0) => Use::Key,
                    ("map" | "select" | "reject" | "selectattr" | "rejectattr" | "attr" | "trim", _) => Use::Key,
                    _ => Use::Text,
                })?;
                wrap("__own", Expr::Filter(spanned(ast::Filter { name: f.name, expr: inner, args }, f.span())))
            }
            Expr::Test(t) => {
                let cheap = CONSTANT_TESTS.contains(&t.name);
                let expr = self.compared(&t.expr, cheap)?;
                let mut args = self.args(&t.args, t.span(), |_| Use::Key)?;
                if !cheap {
                    args = args
                        .into_iter()
                        .map(|arg| match arg {
                            ast::CallArg::Pos(e) => ast::CallArg::Pos(wrap("__cost", e)),
                            other => other,
                        })
                        .collect();
                }
                Expr::Test(spanned(ast::Test { name: t.name, expr, args }, t.span()))
            }
            Expr::GetAttr(g) => {
                let expr = self.expr(&g.expr, Use::Text)?;
                Expr::GetAttr(spanned(ast::GetAttr { expr, name: g.name }, g.span()))
            }
            Expr::GetItem(g) => {
                let by_name = matches!(&g.subscript_expr, Expr::Const(c) if c.value.as_str().is_some());
                let expr = self.expr(&g.expr, used)?;
                let expr = if by_name { expr } else { wrap("__at", expr) };
                let subscript_expr = self.expr(&g.subscript_expr, Use::Key)?;
                Expr::GetItem(spanned(ast::GetItem { expr, subscript_expr }, g.span()))
            }
            Expr::Call(c) => wrap("__own", Expr::Call(self.call(c)?)),
            Expr::List(l) => {
                let mut items = Vec::new();
                for item in &l.items {
                    items.push(self.expr(item, used)?);
                }
                wrap("__own", Expr::List(spanned(ast::List { items }, l.span())))
            }
            Expr::Map(m) => {
                let (mut keys, mut values) = (Vec::new(), Vec::new());
                for key in &m.keys {
                    keys.push(self.expr(key, Use::Key)?);
                }
                for value in &m.values {
                    values.push(self.expr(value, used)?);
                }
                wrap("__own", Expr::Map(spanned(ast::Map { keys, values }, m.span())))
            }
        })
    }

    fn compared<'a>(&mut self, expr: &Expr<'a>, cheap: bool) -> Result<Expr<'a>> {
        let new = self.expr(expr, Use::Key)?;
        Ok(if cheap || scalar(expr) { new } else { wrap("__cost", new) })
    }

    fn binary<'a>(&mut self, b: &Spanned<ast::BinOp<'a>>, used: Use) -> Result<Expr<'a>> {
        use ast::BinOpKind::*;
        let replacement = match b.op {
            Add => Some("__add"),
            Mul => Some("__mul"),
            Rem => Some("__rem"),
            FloorDiv => Some("__div"),
            Concat => Some("__cat"),
            _ => None,
        };
        if let Some(name) = replacement {
            let left = self.expr(&b.left, used)?;
            let right = self.expr(&b.right, used)?;
            return Ok(filter(name, left, vec![ast::CallArg::Pos(right)]));
        }
        let comparison = matches!(b.op, Eq | Ne | Lt | Lte | Gt | Gte | In);
        let (left, right) = if comparison {
            let cheap = matches!(b.op, Eq | Ne) && (scalar(&b.left) || scalar(&b.right));
            (self.compared(&b.left, cheap)?, self.compared(&b.right, cheap)?)
        } else {
            (self.expr(&b.left, used)?, self.expr(&b.right, used)?)
        };
        Ok(Expr::BinOp(spanned(ast::BinOp { op: b.op, left, right }, b.span())))
    }
}
