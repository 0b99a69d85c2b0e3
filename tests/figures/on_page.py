"""What every figure must hold: all of it is on its page, and no text is too small to read."""

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text


def assert_on_page(figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    for part in figure.subfigs:
        box = part.get_tightbbox(canvas.get_renderer())
        assert box.x0 >= -1 and box.x1 <= figure.bbox.x1 + 1 and box.y0 >= -1 and box.y1 <= figure.bbox.y1 + 1
    assert min(text.get_fontsize() for text in figure.findobj(Text) if text.get_text()) >= 7
