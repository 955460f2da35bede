-- PostgreSQL's image makes the database of Prefect by itself. MLflow needs one of its own: both keep a table alembic_version.
CREATE DATABASE mlflow;
