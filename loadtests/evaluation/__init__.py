"""Black box over HTTP: what steering does to whole answers, on models that the project does not ship."""
