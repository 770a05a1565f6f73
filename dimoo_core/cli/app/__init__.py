"""`app`: a page in the browser with a form for each job."""
