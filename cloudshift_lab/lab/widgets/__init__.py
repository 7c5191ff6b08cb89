"""Live widgets: small JavaScript files beside their Python, no build step.

Each ESM is ``page.js``, where a move is shown ``move.js``, and the widget's own file, because a
widget is one module.
"""
