"""Which particles to keep: measures, criteria, and the choice by the quality of the map."""
