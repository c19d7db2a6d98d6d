"""What is made of results: evaluations, reports, and the generated scenes of the demo."""
