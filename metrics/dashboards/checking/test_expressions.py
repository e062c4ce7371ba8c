"""What is said of expressions is right. Run by the check, or: python3 -m unittest checking.test_expressions"""

import unittest

from . import expressions


class Names(unittest.TestCase):
    def test_metrics_and_recorded_series_are_names_and_labels_are_not(self):
        expression = (
            'sum by (job) (rate(vfio_ccw_a_total{class="vfio_ccw_no", job="b"}[5m])) / '
            "on (job) instance:vfio_ccw_b:rate1m"
        )
        self.assertEqual(expressions.names_in(expression), {"vfio_ccw_a_total", "instance:vfio_ccw_b:rate1m"})

    def test_names_in_a_template_are_within_strings(self):
        text = '{{ query (printf "rate(vfio_ccw_a_total{%s}[1m])" $of) }} {{ query "instance:vfio_ccw_b:rate1m" }}'
        self.assertEqual(expressions.names_in_template(text), {"vfio_ccw_a_total", "instance:vfio_ccw_b:rate1m"})

    def test_a_histogram_is_documented_under_its_own_name(self):
        documented = expressions.documented_names("| `vfio_ccw_stage_duration_seconds` | and vfio_ccw_a_total |")
        self.assertTrue(expressions.is_documented("vfio_ccw_stage_duration_seconds_bucket", documented))
        self.assertTrue(expressions.is_documented("vfio_ccw_a_total", documented))
        self.assertFalse(expressions.is_documented("vfio_ccw_a", documented))


class Alerts(unittest.TestCase):
    def test_what_is_compared_is_left_of_each_comparison(self):
        for alert, compared in (
            ('up{job=~"a|b"} == 0', ['up{job=~"a|b"}']),
            ("(count(up) or vector(0)) == 0", ["(count(up) or vector(0))"]),
            ("a / (b > 0) > 0.01\nand on (job, instance)\nc >= 3", ["a / (b > 0)", "c"]),
            ("a > on (class) group_left () b", ["a"]),
            ('a{x!="and"} < 0.8 * b unless c', ['a{x!="and"}', "c"]),
            ("band_or > 1", ["band_or"]),
            ("absent(a)", ["absent(a)"]),
        ):
            self.assertEqual(expressions.compared(alert), compared, alert)


class Variables(unittest.TestCase):
    def test_both_spellings_are_replaced(self):
        expression = 'rate(a{i=~"$i", j="${i:regex}"}[$__rate_interval])'
        replaced = expressions.substitute(expression, {"i": "x", "__rate_interval": "20s"})
        self.assertEqual(replaced, 'rate(a{i=~"x", j="x"}[20s])')

    def test_one_that_is_not_there_is_an_error(self):
        with self.assertRaises(KeyError):
            expressions.substitute("a[$range]", {})

    def test_several_values_become_an_expression_within_a_string(self):
        self.assertEqual(expressions.one_of(["10.0.0.1:9"]), "10\\\\.0\\\\.0\\\\.1:9")
        self.assertEqual(expressions.one_of(["read", "write-x"]), "(read|write-x)")


if __name__ == "__main__":
    unittest.main()
