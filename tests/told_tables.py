"""Tables made of runs that a test tells, without a store; what a figure made of one shows."""

from matplotlib.text import Text

from analysis.charts import FIGURES
from analysis.outcomes import Unusable
from analysis.runs import Run
from analysis.sources import Source
from analysis.study import Study
from analysis.tables import make_table
from analysis.training import Costs, Training
from grids import outcome

T_2 = 4.302653  # 97.5% point of Student's t with 2 degrees of freedom
PAIR = "OLMo-GSM8K"
PLANE = {"batch": [32, 64], "rollouts": [1, 2], "advantage": ["raw", "grpo"]}
CONTRAST = {"name": "batch", "a": {"batch": 32}, "b": {"batch": 64}, "margin": 0.05}


class Told(Source):
    """A source that says of every cell what a function does, and holds no answers."""

    has_answers, name, place = False, "test", "a test"

    def __init__(self, run):
        self.run = run

    def answers(self, cell):
        raise Unusable("there are none")

    def hardware(self, cell):
        return None

    def registrations(self):
        return []

    def looks(self):
        return []


def run_of(cell, *values, state="finished", tokens=1000.0):
    """A run with these Pass@1 at rounds 0, 50, 100; every round generated `tokens` a query."""
    curve = {
        50 * i: {outcome.TEST_PASS: x, outcome.GENERATED_TOKENS: 50 * i * tokens * cell.batch}
        for i, x in enumerate(values)
    }
    last = max(curve)
    costs = Costs(generated_tokens=curve[last][outcome.GENERATED_TOKENS])
    broke = last + 10 if state == "diverged" else None
    return Run(cell, state, "", last, last, broke, curve[0], curve[last], Training(costs, curve))


def learns(cell):
    """Larger batches gain more, seeds differ by 0.1."""
    final = 0.3 + cell.batch / 1000 + cell.seed / 10
    return run_of(cell, 0.2, (0.2 + final) / 2, final)


def tabled(grid, run=learns):
    study = Study(Told(run))
    return make_table(grid, study), study


def drawn(name, grid, run=learns):
    return FIGURES[name].make(*tabled(grid, run))


def lines_of(axes, *, style=None):
    found = [line for line in axes.lines if len(line.get_xdata()) > 1]
    return [line for line in found if style is None or line.get_linestyle() == style]


def texts_of(figure):
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def panel_names(figure):
    return [axes.get_title(loc="left") for axes in figure.axes]
