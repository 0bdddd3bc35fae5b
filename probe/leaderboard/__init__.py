"""Tables, ranks, plots and the page of results, all made from records."""
