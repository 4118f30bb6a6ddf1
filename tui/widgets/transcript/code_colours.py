"""Colours of code: Textual's two sets without shades that can't be read, such as a comment at 60 % or blue on black."""

from __future__ import annotations

from pygments.token import Token
from textual.highlight import HighlightTheme, TokenType


class ThemeColours(HighlightTheme):
    """From the theme's text colours, which have contrast on every background of it."""

    STYLES: dict[TokenType, str] = {
        Token.Comment: "$text-muted italic",
        Token.Error: "$text-error",
        Token.Generic.Strong: "bold",
        Token.Generic.Emph: "italic",
        Token.Generic.Error: "$text-error",
        Token.Generic.Heading: "$text-primary underline",
        Token.Generic.Subheading: "$text-primary",
        Token.Keyword: "$text-accent",
        Token.Keyword.Constant: "$text-success bold",
        Token.Keyword.Namespace: "$text-error",
        Token.Keyword.Type: "bold",
        Token.Literal.Number: "$text-warning",
        Token.Literal.String: "$text-success",
        Token.Literal.String.Backtick: "$text-muted",
        Token.Literal.String.Doc: "$text-success italic",
        Token.Name: "$text-primary",
        Token.Name.Attribute: "$text-warning",
        Token.Name.Builtin: "$text-accent",
        Token.Name.Builtin.Pseudo: "italic",
        Token.Name.Class: "$text-warning bold",
        Token.Name.Constant: "$text-error",
        Token.Name.Decorator: "$text-primary bold",
        Token.Name.Function: "$text-warning underline",
        Token.Name.Tag: "$text-primary bold",
        Token.Name.Variable: "$text-secondary",
        Token.Operator: "bold",
        Token.Operator.Word: "$text-error bold",
    }


class OwnColours(HighlightTheme):
    """On terminals' own colours: green and cyan can be read on black as on white, the others only on one of them."""

    STYLES: dict[TokenType, str] = {
        Token.Comment: "italic",
        Token.Generic.Strong: "bold",
        Token.Generic.Emph: "italic",
        Token.Generic.Heading: "bold underline",
        Token.Generic.Subheading: "bold",
        Token.Keyword: "bold",
        Token.Literal.Number: "ansi_cyan",
        Token.Literal.String: "ansi_green",
        Token.Literal.String.Doc: "ansi_green italic",
        Token.Name.Builtin: "ansi_cyan",
        Token.Name.Class: "bold underline",
        Token.Name.Decorator: "italic",
        Token.Name.Function: "underline",
        Token.Name.Tag: "bold",
        Token.Operator.Word: "bold",
    }
