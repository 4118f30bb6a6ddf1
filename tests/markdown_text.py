"""Markdown with all that a model writes: lists, tables, code, quotations, wide and joined characters."""

from __future__ import annotations

TEXT = (
    """A router scores **every expert** for each token and keeps the *best* eight; only those are computed.

- a list with `code` that is long enough to break in the middle of it
- 漢字かな交じり文 and שלום עולם and 👩‍👩‍👧 in one item
  that goes on in a second line
  - with a nested point, and its text
    > a quotation in it

    and a paragraph behind
  - another
- the last

1. one
2. two

   ```sh
   make demo
   ```
3. three
4. four
5. five
6. six
7. seven
8. eight
9. nine
10. ten moves the others to the right
11. | not | a table |

```python
scores = router(hidden_states)  # a line of code that is longer than the column is wide
```

| layer | experts |
|---|---|
| 0 | 128 |

> a quotation that **becomes bold late
> - with a list
> - of two points

The end: """
    + "word " * 40
)
