"""Read a page as a browser would, and hold it to what every page must be."""

import re
from html.parser import HTMLParser

VOID = {"meta", "br", "circle", "path"}


class Page(HTMLParser):
    """Collects what a page is made of, and checks that elements are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.refs, self.text = [], [], [], [], []
        self.tables_without_caption = 0
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.append((tag, given))
        self.ids += [given["id"]] if "id" in given else []
        self.refs += [*(given.get("aria-labelledby") or "").split(), given.get("href", "#")[1:]]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def check_page(text):
    """Check what every page must be: self-contained, well-formed and readable without eyes; return it parsed."""
    page = Page(text)
    names = [tag for tag, _ in page.tags]
    assert not {"script", "link", "img", "iframe", "object", "base"} & set(names)
    assert not re.search(r"https?:|//[a-z]|url\(|@import|@font-face", text.replace("<!doctype html>", ""))
    assert not any(name.startswith("on") for _, given in page.tags for name in given)
    assert len(page.ids) == len(set(page.ids))
    assert set(filter(None, page.refs)) <= set(page.ids)
    assert names.count("table") == names.count("caption") == text.count('role="region"')
    charts = [given for tag, given in page.tags if tag == "svg" and given.get("role") == "img"]
    assert len(charts) == names.count("desc") > 0
    assert names.count("h1") == 1 and 'lang="en"' in text
    return page
